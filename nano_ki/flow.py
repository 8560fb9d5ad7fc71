"""Flow matching: noise -> action along a straight path, with the conventions in one place.

    t = 0 is noise, t = 1 is the action        x_t = (1 - t) noise + t action
    target (the velocity to predict) = action - noise, the same at every t
    acting: start at noise, take Euler steps forward, x += step * v

The pi-0 papers write the target the other way round, and openpi's code also lets time run backwards.
Training times lean to the noisy end (noise level ~ Beta(1.5, 1), mean 0.6): late in the path the answer
can almost be read off x_t; early on it must come from the picture and the words.

Try it: python -m nano_ki.flow          Read next: expert.py
"""
import torch


def sample_time(*shape, generator=None, device=None):
    """Training times t in [0, .999], float32 of `shape`. The noise level 1 - t is .999 u + .001 with u ~ Beta(1.5, 1).
    Its distribution function is u^1.5, so inverting it gives u = uniform^(1/1.5), exactly and without rejection."""
    u = torch.rand(shape, generator=generator, device=device) ** (1 / 1.5)
    return 1 - (.999 * u + .001)

def path(action, noise, t):
    """x_t. action, noise [..., H, A]; t [...]: one time per chunk, which is spread over H and A here."""
    if t.shape != action.shape[:-2]:
        raise ValueError(f"times have shape {tuple(t.shape)} for actions {tuple(action.shape)}; wanted one for each chunk, "
                         f"{tuple(action.shape[:-2])}: others would silently broadcast over the wrong axis")
    t = t[..., None, None]
    return (1 - t) * noise + t * action

def target(action, noise):
    """The velocity d x_t / d t."""
    return action - noise

def times(steps, device=None):
    """Where Euler steps begin and end, [steps + 1] from 0 to 1. Each is shorter than the one before (two: 2/3 and 1/3), for
    the end is where the path must be met. (Measured: two such steps push as well as three equal ones; two equal ones do not.)"""
    left = torch.arange(steps, -1, -1, device=device)
    return 1 - left * (left + 1) / (steps * (steps + 1))

def euler(velocity, noise, times):
    """Integrate from t = 0 to t = 1. velocity(x, t) has the shape of x; noise [..., H, A]; times [steps + 1] -> actions."""
    x = noise
    for now, then in zip(times, times[1:], strict=False):
        x = x + (then - now) * velocity(x, now.expand(x.shape[:-2]))
    return x

if __name__ == "__main__":
    print(f"mean noise level {1 - sample_time(100_000).mean():.3f} (Beta(1.5, 1): .600)")
