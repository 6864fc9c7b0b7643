"""The paper's networks: `build_net` by name, or the classes themselves."""

from normscope.nets.build import NET_FAMILIES, NET_NORMS, build_net
from normscope.nets.mlp import MLP
from normscope.nets.plain import PlainCNN
from normscope.nets.resnet import SHORTCUTS, ResNet

__all__ = ["MLP", "NET_FAMILIES", "NET_NORMS", "SHORTCUTS", "PlainCNN", "ResNet", "build_net"]
