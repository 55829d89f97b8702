"""Networks: U-Nets that predict the noise of an image, and the flow that dequantizes one."""

from scoremle.nn.ddpmpp import DDPMpp
from scoremle.nn.flowpp import FlowPP

__all__ = ["DDPMpp", "FlowPP"]
