"""The stages: plain classes `__call__(block) -> block`, and no Ray.

Every bulk stage maps numbered blocks of one table. A stage says in its docstring what it reads and
writes, and knows neither files' places nor workers: `rocketray.engine` moves the blocks. Stages
never import each other; what they share is `rocketray.schema`.
"""
