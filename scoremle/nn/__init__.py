"""Networks: U-Nets that read a noisy image and its noise level and predict the noise."""

from scoremle.nn.ddpmpp import DDPMpp

__all__ = ["DDPMpp"]
