from .build import build_net as build_net
from .mlp import MLP as MLP
from .names import NET_FAMILIES as NET_FAMILIES
from .names import NET_NORMS as NET_NORMS
from .plain import PlainCNN as PlainCNN
from .resnet import SHORTCUTS as SHORTCUTS
from .resnet import ResNet as ResNet
