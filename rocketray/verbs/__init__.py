"""The verbs beside `run`: one piece of work each, on any data set and any model.

| file      | holds                                                                         |
| --------- | ----------------------------------------------------------------------------- |
| work.py   | ingest, encode, retrieve, score, denoise, augment, index                       |
| named.py  | what a command names (data, model, questions, run), as versions of its folder  |
| plain.py  | what it leaves for other tools: `.npy`, TREC, Parquet, JSON lines, faiss       |
| upkeep.py | status and clean: what a folder holds, and what of it is old                   |
"""
