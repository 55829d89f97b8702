"""The bound of DDPM and of improved diffusion, in a plain loop over steps, in float64."""

import numpy as np

__all__ = ["normal_cdf", "published_terms"]


def normal_cdf(x):
    """As published; it is nearly the normal one."""
    return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def published_terms(network, integers, levels, labels, noises, variance, clip, all_betas):
    """L_T, every L_t and every draw of L_0 in nats, of the steps with these labels.

    ``network(x, label)`` gives eps, and behind it v where the ``variance`` is "learned". The
    integers stand at 2k / (levels - 1) - 1. ``noises`` are those of the steps, then those of L_0.
    """
    kept = np.cumprod(1 - all_betas)[labels]
    before = np.append(1.0, kept[:-1])
    beta = 1 - kept / before
    posterior = beta * (1 - before) / (1 - kept)
    log_posterior = np.log(np.append(posterior[1], posterior[1:]))
    log_beta = np.log(beta)
    half = 1 / (levels - 1)
    y = 2 * half * integers.astype(np.float64) - 1
    channels, total = integers.shape[-1], (1, 2, 3)

    def outputs(i, z):
        x = np.sqrt(kept[i]) * y + np.sqrt(1 - kept[i]) * z
        out = network(x, np.full(len(y), float(labels[i])))
        estimate = (x - np.sqrt(1 - kept[i]) * out[..., :channels]) / np.sqrt(kept[i])
        estimate = np.clip(estimate, -1, 1) if clip else estimate
        share = (out[..., channels:] + 1) / 2 if variance == "learned" else 0
        log_variance = {
            "small": log_posterior[i] + 0 * x,
            "large": (log_beta if i else log_posterior)[i] + 0 * x,
            "learned": share * log_beta[i] + (1 - share) * log_posterior[i],
        }[variance]
        of_data = np.sqrt(before[i]) * beta[i] / (1 - kept[i])
        of_x = np.sqrt(1 - beta[i]) * (1 - before[i]) / (1 - kept[i]) * x
        return of_data * y + of_x, of_data * estimate + of_x, log_variance

    terms = []
    for number, i in enumerate(range(1, len(labels))):
        true, mean, log_variance = outputs(i, noises[number])
        gap = log_posterior[i] - log_variance
        kl = (-1 - gap + np.exp(gap) + (true - mean) ** 2 * np.exp(-log_variance)) / 2
        terms.append(kl.sum(axis=total))
    last = []
    for z in noises[len(labels) - 1 :]:
        _, mean, log_variance = outputs(0, z)
        below = np.where(integers == 0, -np.inf, y - half - mean)
        above = np.where(integers == levels - 1, np.inf, y + half - mean)
        low, high = (normal_cdf(edge / np.exp(log_variance / 2)) for edge in (below, above))
        last.append(-np.log(np.maximum(high - low, 1e-12)).sum(axis=total))
    prior = (kept[-1] * y**2 + (1 - kept[-1]) - 1 - np.log(1 - kept[-1])).sum(axis=total) / 2
    return prior, np.array(terms), np.array(last)
