from . import config as config
from . import data as data
from . import models as models
from . import optim as optim
from . import sharding as sharding
from .checks import UserError as UserError
from .data import load as load
from .metrics import Metrics as Metrics
from .models import CNN as CNN
from .models import MLP as MLP
from .models import SoftmaxRegression as SoftmaxRegression
from .predict import predict_images as predict_images
from .restore import load_state as load_state
from .state import TrainState as TrainState
from .state import create_state as create_state
from .steps import eval_step as eval_step
from .steps import eval_steps as eval_steps
from .steps import loss_fn as loss_fn
from .steps import predict_step as predict_step
from .steps import train_step as train_step
from .steps import train_steps as train_steps
from .train import train_and_evaluate as train_and_evaluate

__version__: str
