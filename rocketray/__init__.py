"""rocketray: RocketQA (Qu et al., NAACL 2021, arXiv 2010.08191) as a distributed system on Ray.

Four steps, in this order, each model trained from the initial weights again:

1. `dual_0`: a dual encoder learns from labelled questions, every passage of the whole global batch
   being a negative for every question (model/trainer.py, model/gather.py, model/loss.py).
2. `cross`: a cross-encoder learns from the same positives and from negatives drawn out of what
   dual_0 retrieves (stages/retrieve.py, stages/examples.py).
3. `dual_1`: the cross-encoder scores what dual_0 retrieves (stages/score.py), only confident
   negatives are kept (stages/denoise.py), and a second dual encoder learns from them.
4. `dual_2`: unlabelled questions are searched with dual_1 and labelled by the cross-encoder
   (stages/augment.py); the last dual encoder learns from both. It is the result.

`pipeline.py` has these steps as code; `schema.py` says what flows between them.
"""

__version__ = "0.1.0"
