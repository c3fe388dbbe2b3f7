"""Values, gradients and optimizer steps against torch's autograd, live, in float64."""

import numpy as np
import pytest

from lorabook import functional as F
from lorabook.layers import Activation, LayerNorm, Linear, Softmax
from lorabook.models import MLP
from lorabook.training import SGD, AdamW

N, D, K = 5, 7, 4


def close(got, want):
    want = want.detach().numpy()
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["linear", "layer_norm", "relu", "gelu", "gelu_tanh", "silu", "softmax"])
def test_layer(torch, rng, name):
    weight, bias, x = rng.standard_normal((K, D)), rng.standard_normal(K), rng.standard_normal((2, N, D))
    gain, shift = rng.standard_normal(D), rng.standard_normal(D)
    f = torch.nn.functional
    ours, theirs, arrays = {
        "linear": (Linear(weight, bias), f.linear, (weight, bias)),
        "layer_norm": (LayerNorm(gain, shift), lambda x, w, b: f.layer_norm(x, (D,), w, b), (gain, shift)),
        "relu": (Activation("relu"), f.relu, ()),
        "gelu": (Activation("gelu"), f.gelu, ()),
        "gelu_tanh": (Activation("gelu_tanh"), lambda x: f.gelu(x, approximate="tanh"), ()),
        "silu": (Activation("silu"), f.silu, ()),
        "softmax": (Softmax(), lambda x: f.softmax(x, dim=-1), ()),
    }[name]
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, *arrays)]
    want = theirs(*tensors)
    got, cache = ours(x)
    close(got, want)
    dout = rng.standard_normal(got.shape)
    want.backward(torch.tensor(dout))
    dx, grads = ours.backward(dout, cache)
    close(dx, tensors[0].grad)
    for (_, grad), tensor in zip(sorted(grads.items(), reverse=True), tensors[1:], strict=True):
        close(grad, tensor.grad)


def test_losses(torch, rng):
    logits, labels, target = rng.standard_normal((N, K)), rng.integers(0, K, N), rng.standard_normal((N, K))
    for (forward, backward), theirs, goal in (
        (F.LOSSES["cross_entropy"], torch.nn.functional.cross_entropy, labels),
        (F.LOSSES["mean_squared_error"], torch.nn.functional.mse_loss, target),
    ):
        x = torch.tensor(logits, requires_grad=True)
        want = theirs(x, torch.tensor(goal))
        want.backward()
        loss, cache = forward(logits, goal)
        close(loss, want)
        close(backward(1.0, cache), x.grad)


def test_loss_with_labels_that_do_not_count(torch, rng):
    logits, labels = rng.standard_normal((3, N, K)), rng.integers(0, K, (3, N))
    labels[1:, 2:] = -100
    x = torch.tensor(logits, requires_grad=True)
    want = torch.nn.functional.cross_entropy(x.reshape(-1, K), torch.tensor(labels).ravel(), ignore_index=-100)
    want.backward()
    loss, cache = F.softmax_cross_entropy(logits, labels)
    close(loss, want)
    close(F.softmax_cross_entropy_backward(1.0, cache), x.grad)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: SGD(0.1, momentum=0.9, weight_decay=0.05), lambda t, p: t.optim.SGD(p, 0.1, 0.9, weight_decay=0.05)),
        (lambda: AdamW(0.02, weight_decay=0.1), lambda t, p: t.optim.AdamW(p, 0.02, weight_decay=0.1)),
        (lambda: AdamW(0.02, betas=(0.8, 0.95), eps=1e-4), lambda t, p: t.optim.AdamW(p, 0.02, (0.8, 0.95), 1e-4, 0.0)),
    ],
)
def test_ten_optimizer_steps(torch, rng, ours, theirs):
    params = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}
    tensors = {name: torch.tensor(a, requires_grad=True) for name, a in params.items()}
    optimizer, reference = ours(), theirs(torch, tensors.values())
    for _ in range(10):
        grads = {name: rng.standard_normal(a.shape) for name, a in params.items()}
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[name])
        reference.step()
        optimizer.step(params, grads)
    for name, tensor in tensors.items():
        close(params[name], tensor)


def test_initial_weights_follow_torchs_default(torch):
    """Linear.random and nn.Linear draw from the same distribution: equal bounds and standard deviation."""
    ours = Linear.random(300, 200, np.random.default_rng(0)).params
    theirs = torch.nn.Linear(300, 200)
    for name in ("weight", "bias"):
        want = getattr(theirs, name).detach().numpy()
        assert np.abs(ours[name]).max() <= 300**-0.5
        assert np.abs(want).max() <= 300**-0.5
        assert ours[name].std() == pytest.approx(want.std(), rel=0.15)


def test_whole_mlp(torch, rng):
    model = MLP((D, 6, K), "gelu", rng=rng).to(np, "float64")
    params = {n: torch.tensor(a, requires_grad=True) for n, a in model.named_params().items()}
    x, labels = rng.standard_normal((N, D)), rng.integers(0, K, N)
    f = torch.nn.functional
    hidden = f.gelu(f.linear(torch.tensor(x), params["fc1.weight"], params["fc1.bias"]))
    loss = f.cross_entropy(f.linear(hidden, params["fc2.weight"], params["fc2.bias"]), torch.tensor(labels))
    loss.backward()
    got, grads = model.loss_and_grad({"x": x, "labels": labels})
    close(got, loss)
    assert grads.keys() == params.keys()
    for name, tensor in params.items():
        close(grads[name], tensor.grad)
