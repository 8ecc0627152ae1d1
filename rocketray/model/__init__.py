"""The two models and what trains them: torch and torch.distributed, never Ray.

weights finds a checkpoint; tokens stores token ids and makes batches; dual_encoder and
cross_encoder are the models; gather, loss and grad_cache give the exact gradient of the global
batch; trainer is the loop around them and checkpoints its memory.
"""
