"""An optimizer: Adam with Nesterov momentum (Dozat 2016).

python train.py quickstart 'extensions=[examples/nadam.py]' optimizer.name=nadam
"""

import optax

import lmjax
from lmjax.config import OptimizerConfig
from lmjax.optim.optimizer import decay_mask


def nadam(config: OptimizerConfig) -> optax.GradientTransformation:
    """From clipped gradients to the direction, with decoupled weight decay."""
    return optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, nesterov=True),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
    )


lmjax.register_optimizer("nadam", nadam)
