"""log p of a PyTorch network by its probability-flow ODE, in float64, with the exact trace.

With y = x / alpha and s = sigma / alpha the ODE of every SDE is dy / d log s = s eps. It is solved
by scipy from each of the given values of log s to the next, between which the field is smooth; the
trace along it is integrated by Gauss's rule. Networks take and give images with channels first.
Needs PyTorch.
"""

import itertools

import numpy as np
import torch
from scipy.integrate import solve_ivp

__all__ = ["assert_log_prob", "flow_log_prob", "vp_log_prob"]

ODE_TOLERANCE = 1e-6
# Gauss's rule takes so many points in each part of log s, which is no longer than this.
POINTS, LONGEST = 6, 0.5
# Of log p, beside the error that is stated, in bits/dim.
TOLERANCE = 1e-4


def flow_log_prob(eps, y, log_s, prior_std):
    """log p(y) in nats of one image y with channels last, where log s has its first value.

    ``eps(y, log_s)`` takes images [n c h w] in float64. At the last value y is normal with
    ``prior_std``.
    """
    image = torch.tensor(y).movedim(-1, 0)

    def rate(log_s, flat):
        with torch.no_grad():
            output = eps(torch.tensor(flat).reshape(1, *image.shape), log_s)
        return np.exp(log_s) * output.flatten().numpy()

    def trace(log_s, flat):
        # One copy for each dimension: the diagonal of their gradients is that of the jacobian.
        copies = torch.tensor(flat).repeat(y.size, 1).requires_grad_()
        output = eps(copies.reshape(-1, *image.shape), log_s).reshape(copies.shape)
        (rows,) = torch.autograd.grad(output.diagonal().sum(), copies)
        return np.exp(log_s) * rows.diagonal().sum().item()

    state, change = image.flatten().numpy(), 0.0
    points, weights = np.polynomial.legendre.leggauss(POINTS)
    for low, high in itertools.pairwise(log_s):
        how = {"method": "DOP853", "dense_output": True}
        path = solve_ivp(rate, (low, high), state, rtol=ODE_TOLERANCE, atol=ODE_TOLERANCE, **how)
        parts = int(np.ceil((high - low) / LONGEST))
        half = (high - low) / parts / 2
        at = low + half * (1 + points + 2 * np.arange(parts)[:, None])
        traces = [[trace(point, path.sol(point)) for point in part] for part in at]
        state, change = path.y[:, -1], change + half * np.sum(traces @ weights)
    z = state / prior_std
    return change - z @ z / 2 - y.size * (np.log(2 * np.pi) / 2 + np.log(prior_std))


def vp_log_prob(eps, x, kept):
    """log p(x) in nats of one image in the data's scale, at the first step of a chain.

    ``eps(x, label)``: between two steps the label is linear in the log-SNR. ``kept``: of each
    step, the share of the variance that is the signal's.
    """
    log_s = np.log(1 / kept - 1) / 2

    def of_scaled(y, at):
        label = np.interp(at, log_s, np.arange(len(kept)))
        return eps(y / np.sqrt(1 + np.exp(2 * at)), label)

    return flow_log_prob(of_scaled, x, log_s, kept[-1] ** -0.5)


def assert_log_prob(found, expected, dims):
    """Is the `Likelihood` of one image the expected one, and its stated error small?"""
    bits = dims * np.log(2)
    error, stated = abs(found.log_prob[0] - expected) / bits, found.solver_error[0] / bits
    assert error < TOLERANCE + stated, (error, stated)
    assert stated < 10 * TOLERANCE
