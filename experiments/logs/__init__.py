"""The numbers that a run logs: ``metrics.csv``, TensorBoard events and Weights & Biases.

A training that is killed goes on from its last checkpoint and logs again, with the same values, whatever it had logged
since. So each log takes part in a checkpoint: it says where it stands (``state``), and when it is continued from there
it drops what came later. Nothing is logged twice, and nothing is missing.
"""

from experiments.logs.logger import RunLogger, complete_record, metrics_logger, require_state
from experiments.logs.metrics import read_back
from experiments.logs.weights_and_biases import require_login

__all__ = ["RunLogger", "complete_record", "metrics_logger", "read_back", "require_login", "require_state"]
