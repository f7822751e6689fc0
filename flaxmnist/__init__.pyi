from . import config as config
from . import data as data
from .core import models as models
from .core import optim as optim
from .core import sharding as sharding
from .core.metrics import Metrics as Metrics
from .core.models import CNN as CNN
from .core.models import MLP as MLP
from .core.models import SoftmaxRegression as SoftmaxRegression
from .core.state import TrainState as TrainState
from .core.state import create_state as create_state
from .core.steps import eval_step as eval_step
from .core.steps import eval_steps as eval_steps
from .core.steps import loss_fn as loss_fn
from .core.steps import predict_step as predict_step
from .core.steps import train_step as train_step
from .core.steps import train_steps as train_steps
from .data import load as load
from .errors import UserError as UserError
from .inference.predict import predict_images as predict_images
from .inference.saved_run import SavedRun as SavedRun
from .inference.saved_run import open_run as open_run
from .training.loop import train_and_evaluate as train_and_evaluate

__version__: str
