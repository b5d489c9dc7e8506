"""Tasks: importing this package registers them."""

from envs.tasks import ant as ant
from envs.tasks import lift as lift
from envs.tasks import metaworld as metaworld
from envs.tasks import push as push
from envs.tasks import reach as reach
from envs.tasks import scarf as scarf
