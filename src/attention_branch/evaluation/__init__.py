"""How right a network is, how well it knows that, and where its map points."""

from attention_branch.evaluation.evaluate import evaluate
from attention_branch.evaluation.evaluation import Evaluation, HeadEvaluation, Predictions
from attention_branch.evaluation.run import evaluate_run

__all__ = ["Evaluation", "HeadEvaluation", "Predictions", "evaluate", "evaluate_run"]
