"""Classic slips, each put into the library for a moment: does a test notice?

MUTANTS: {test module that has to notice: {function: [(name of the slip, fragment of the source, replacement)]}}. The
fragment occurs exactly once in the function.
"""

import atexit
import contextlib
import functools
import importlib
import inspect
import itertools
import pkgutil
import shutil
import sys
import tempfile
import textwrap
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from lorabook.errors import NonFiniteError

MUTANTS = {
    # forward and backward disagree
    "test_gradients": {
        "functional:linear": [
            ("bias left out of y", "y += bias", "pass"),
        ],
        "functional:linear_backward": [
            ("dx with the wrong sign", "dout @ weight", "-dout @ weight"),
            ("dx through the transposed weight", "dout @ weight", "dout @ weight.T"),
            ("dW transposed", "dout.T @ rows(x)", "rows(x).T @ dout"),
            ("dW averaged over the batch", "dout.T @ rows(x)", "dout.T @ rows(x) / len(dout)"),
            ("db averaged over the batch", "xp.sum(dout, axis=0)", "xp.mean(dout, axis=0)"),
            ("db summed over features", "xp.sum(dout, axis=0)", "xp.sum(dout, axis=1)"),
            ("db of the first sample", "xp.sum(dout, axis=0)", "dout[0]"),
        ],
        "functional:activation_backward": [
            ("backward without the slope", "dout * slope", "dout"),
        ],
        "functional:relu": [
            ("slope of |x|", "return x * slope, slope", "return x * slope, 2 * slope - 1"),
            ("leaky slope", "return x * slope, slope", "return x * slope, slope + 0.01"),
        ],
        "functional:gelu_tanh": [
            ("1 - t for 1 - t^2", "(1 - t * t)", "(1 - t)"),
            ("3 of the cube left out", "(3 * GELU_A)", "GELU_A"),
            ("a half left out", "(0.5 * GELU_C)", "GELU_C"),
            ("x of the product rule left out", "GELU_C) * x *", "GELU_C) *"),
        ],
        "functional:gelu_erf": [
            ("x of the product rule left out", "slope *= x", "pass"),
            ("Phi left out of the slope", "slope += cdf", "pass"),
            ("y = Phi", "return x * cdf", "return cdf"),
            ("density without a half", "exp(-0.5 * x * x)", "exp(-x * x)"),
            ("density wrongly normalised", "slope *= 1 / math.sqrt(2 * math.pi)", "pass"),
        ],
        "backend:normal_cdf": [
            ("erf(x) for erf(x / sqrt 2)", "x * math.sqrt(0.5)", "x"),
        ],
        "functional:silu": [
            ("slope of sigma", "sigma * (1 + x * (1 - sigma))", "sigma * (1 - sigma)"),
            ("a sigma left out", "sigma * (1 + x * (1 - sigma))", "sigma + x * (1 - sigma)"),
            ("tanh(x) for tanh(x / 2)", "xp.tanh(0.5 * x)", "xp.tanh(x)"),
        ],
        "functional:softmax_": [
            ("softmax not normalised", "x *= 1 / array_namespace(x).sum(x, axis=-1, keepdims=True)", "pass"),
        ],
        "functional:softmax_backward": [
            ("without the row sum", "(dout - xp.sum(dout * p, axis=-1, keepdims=True))", "dout"),
            ("row sum without p", "xp.sum(dout * p", "xp.sum(dout"),
            ("without p", "return p * (", "return ("),
            ("sum over the batch", "axis=-1", "axis=0"),
        ],
        "functional:layer_norm": [
            (
                "eps outside the root",
                "xp.sqrt(row_means(xhat * xhat) + eps)",
                "(xp.sqrt(row_means(xhat * xhat)) + eps)",
            ),
            (
                "variance over d - 1",
                "row_means(xhat * xhat)",
                "row_sums(xhat * xhat)[..., None] / (x.shape[-1] - 1)",
            ),
            ("not centred", "x - row_means(x)", "1 * x"),
        ],
        "functional:layer_norm_backward": [
            ("m(v) left out of dx", "dx -= row_means(dx)", "pass"),
            ("m(v xhat) left out of dx", "dx -= xhat * along", "pass"),
            ("sign of m(v xhat)", "dx -= xhat", "dx += xhat"),
            ("rstd squared in dx", "dx *= rstd", "dx *= rstd**2"),
            ("rstd left out of dx", "dx *= rstd", "pass"),
            ("weight left out of dx", "dx = dout * weight", "dx = dout * 1"),
            ("dweight without xhat", "rows(dout * xhat)", "rows(dout)"),
            ("db averaged", "xp.sum(rows(dout), ", "xp.mean(rows(dout), "),
        ],
        "functional:softmax_cross_entropy_backward": [
            ("not divided by the count", "(dloss * w)", "(dloss * (labels >= 0)[..., None])"),
            ("divided by all labels", "(dloss * w)", "(dloss * (labels >= 0)[..., None] / labels.size)"),
            ("labels below 0 count", "(dloss * w)", "(dloss * w.max())"),
            ("p + onehot", "(p - xp", "(p + xp"),
            ("dloss left out", "(dloss * w)", "w"),
        ],
        "functional:softmax_cross_entropy": [
            ("sum in forward", "* counts) / n", "* counts)"),
            ("log left out", "xp.log(total)", "total"),
            ("mean over all labels", "* counts) / n", "* counts) / labels.size"),
            ("labels below 0 count in forward", " * counts) / n", ") / n"),
        ],
        "functional:mean_squared_error_backward": [
            ("2 left out", "2 * dloss", "dloss"),
            ("over N", "math.prod(error.shape)", "len(error)"),
            ("sign", "return error", "return -error"),
        ],
        "models.classifier:Classifier.loss_and_grad": [
            ("gradient of twice the loss", "backward(share", "backward(2 * share"),
        ],
        "layers:Sequential.backward": [
            ("another layer's cache", "caches[i]", "caches[len(names) - 1 - i]"),
            ("dx not handed down", "dout, own =", "_, own ="),
            ("from the bottom up", "(len(names) - 1, lowest - 1, -1)", "(len(names))"),
            ("names without their path", "prefixed(names[i], own)", "own"),
        ],
        "adapters.lora:LoRALinear.forward": [
            ("no update in y", "y += F.linear(z, self.scaling * B)[0]", "pass"),
            ("no scaling in y", "self.scaling * B", "B"),
            ("bias added twice", "self.scaling * B)", "self.scaling * B, b)"),
            ("no mask in y", "x if M is None else x * M", "x"),
            ("mask on the base as well", "y = F.linear(x, W, b)", "y = F.linear(x if M is None else x * M, W, b)"),
        ],
        "adapters.lora:LoRALinear.delta_weight": [
            ("no scaling in the merged order", 'self.scaling * self.params["lora_B"]', 'self.params["lora_B"]'),
        ],
        "adapters.lora:LoRALinear.merged_weight": [
            ("no update in the merged order", "self.delta_weight()", "0 * self.delta_weight()"),
            ("nothing but the update", 'weight += self.params["weight"]', "pass"),
            (
                "update written into the base",
                'weight = self.delta_weight()\n    weight += self.params["weight"]',
                'weight = self.params["weight"]\n    weight += self.delta_weight()',
            ),
        ],
        "adapters.lora:LoRALinear.backward": [
            ("no scaling in dz", "s * (dout @ B)", "dout @ B"),
            ("scaling twice in dz", "s * (dout @ B)", "s * s * (dout @ B)"),
            ("sign of dz", "s * (dout @ B)", "-s * (dout @ B)"),
            ("no scaling in dB", "s * (dout.T @ z)", "dout.T @ z"),
            ("scaling twice in dB", "s * (dout.T @ z)", "s * s * (dout.T @ z)"),
            ("dB transposed", "s * (dout.T @ z)", "s * (z.T @ dout)"),
            ("dA transposed", "(xd.T @ dz).T", "xd.T @ dz"),
            ("dA averaged over the batch", "(xd.T @ dz).T", "dz.T @ xd / len(xd)"),
            ("no mask in dA", "(xd.T @ dz).T", "dz.T @ x"),
            ("no mask in dB", "xd @ A.T if merged_order else F.rows(z)", "x @ A.T"),
            ("no mask in dx", "dz @ A if M is None else (dz @ A) * F.rows(M)", "dz @ A"),
            ("no update in dx", "dx += dz @ A if M is None else (dz @ A) * F.rows(M)", "pass"),
            ("no base in dx", "dx = dout @ W", "dx = 0 * (dout @ W)"),
            ("update twice in dx", "if not merged_order:", "if True:"),
            ("mask in dW", "dout.T @ x\n", "dout.T @ xd\n"),
            ("db averaged over the batch", ".sum(dout, axis=0)", ".mean(dout, axis=0)"),
        ],
    },
    "test_attention": {
        "attention:attention": [
            ("keys of the first texts", "k_[block]", "k_[: o_[block].shape[0], : o_[block].shape[1]]"),
            ("bias of the first block", "bias[block]", "bias[: o_[block].shape[0], ...]"),
            ("kept all the same", "if keep:", "if True:"),
        ],
        "attention:_attend": [
            ("scores not scaled", "q = q * (1 / math.sqrt(q.shape[-1]))", "pass"),
            ("scores scaled by the width", "math.sqrt(q.shape[-1])", "math.sqrt(q.shape[-1] * q.shape[1])"),
            ("q written to", "q = q * (", "q *= ("),
            ("bias subtracted", "e += bias", "e -= bias"),
            ("bias left out", "e += bias.mT", "pass"),
            ("bias not transposed", "bias.mT", "bias"),
            ("scores overflow", "e -= shift(e, axis=-2)", "pass"),
            ("shifted by key", "shift(e, axis=-2)", "shift(e, axis=-1)"),
            ("softmax over queries", "sum(e, axis=-2, keepdims=True)", "sum(e, axis=-1, keepdims=True).mT"),
            ("o not normalised", "v) * r.mT", "v)"),
            ("multiplied by l", "r = 1 / array", "r = array"),
        ],
        "attention:attention_backward": [
            ("row sum without o", "dout * o", "dout"),
            (
                "row sum over all heads",
                "row_sums(xp.reshape(dout * o, (B, T, heads, d // heads)))",
                "xp.broadcast_to(row_sums(dout * o)[..., None], (B, T, heads))",
            ),
            ("row sums of the first block", "D[block]", "D[: dq_[block].shape[0], : dq_[block].shape[1]]"),
            ("dq not scaled", "dq *= 1 / math.sqrt(d // heads)", "pass"),
            ("dq scaled by the width", "math.sqrt(d // heads)", "math.sqrt(d)"),
            ("dq and dk swapped", "return dq, dk, dv", "return dk, dq, dv"),
        ],
        "attention:_attend_backward": [
            ("do not divided by l", "contiguous(do) * r.mT", "contiguous(do)"),
            ("dout written to", "do = contiguous(do) * r.mT", "do = contiguous(do); do *= r.mT"),
            ("dv without the transpose of p", "bmm(e, do,", "bmm(e.mT, do,"),
            ("row sum left out", "ds -= D * r", "pass"),
            ("row sum added", "ds -= D", "ds += D"),
            ("row sum not divided by l", "D * r", "D"),
            ("without p", "ds *= e", "pass"),
            ("divided by l twice", "ds *= e", "ds *= e * r"),
            ("dq without the transpose", "bmm(ds.mT, k", "bmm(ds, k"),
            ("dk without the transpose", "bmm(ds, q", "bmm(ds.mT, q"),
            ("dk scaled twice", "bmm(ds, q,", "bmm(ds, q * (1 / math.sqrt(q.shape[-1])),"),
            ("e written to", "ds *= e", "e *= ds; ds = e"),
        ],
        "attention:_blocks": [
            ("whole blocks of texts only", "range(0, B, b)", "range(0, B - b + 1, b)"),
            ("whole blocks of heads only", "range(0, heads, h)", "range(0, heads - h + 1, h)"),
            ("no head is large enough", "max(1, min(heads, fit))", "min(heads, fit)"),
            ("one block always", 'xp.__name__ == "cupy"', "True"),
            ("cut on a GPU", 'xp.__name__ == "cupy"', "False"),
            ("blocks too large", "fit // heads", "fit"),
        ],
        "functional:shift": [
            ("along the last axis always", "axis=axis", "axis=-1"),
        ],
        "attention:merge_heads": [
            ("heads and tokens mixed", "xp.permute_dims(x, (0, 2, 1, 3))", "x"),
        ],
        "attention:causal_bias": [
            ("looks back, not ahead", "[None, :] > ", "[None, :] < "),
            ("hides the token itself", "[None, :] > ", "[None, :] >= "),
        ],
        "attention:padding_bias": [
            ("hides the tokens", "~mask", "mask"),
        ],
        "attention:_bias": [
            ("two biases overflow", ".min / 2", ".min"),
            ("small bias", "xp.finfo(like.dtype).min / 2", "-10.0"),
        ],
    },
    "test_absorbed": {
        "absorbed:absorbing_is_cheaper": [
            ("a tie absorbs", " < T * d", " <= T * d"),
            ("one head", "heads * T", "T"),
            ("one token asks", "f * (d", "(d"),
            ("the dearer way", ") < T", ") > T"),
        ],
        "absorbed:absorbed_attention": [
            ("scores not scaled", " * (1 / math.sqrt(d // heads))", ""),
            ("scores scaled by the width", "math.sqrt(d // heads)", "math.sqrt(d)"),
            ("bias left out", "p += bias", "pass"),
            ("no bias of the value", "o += value_bias", "pass"),
            ("scores of the values", "bmm(q, W_k)", "bmm(q, W_v)"),
            ("mean of the keys", ", W_v.mT)", ", W_k.mT)"),
            ("weights of the first head", ", W_v.mT)", ", (W_v[:1, ...] + 0 * W_v).mT)"),
        ],
        "absorbed:absorbed_attention_backward": [
            ("row sum left out", "ds -= row_sums(du * u)[..., None]", "pass"),
            ("row sum added", "ds -= row_sums", "ds += row_sums"),
            ("row sum without du", "du * u", "u"),
            ("without p", "ds *= p", "pass"),
            ("dx of the mean only", " + bmm(ds.mT, t)", ""),
            ("dx of the scores only", "bmm(p.mT, du) + ", ""),
            ("dx with p and ds swapped", "bmm(p.mT, du) + bmm(ds.mT, t)", "bmm(ds.mT, du) + bmm(p.mT, t)"),
            ("dq not scaled", " * (1 / math.sqrt(d_head))", ""),
            ("dq by the value's weight", "bmm(dt, W_k.mT)", "bmm(dt, W_v.mT)"),
            ("du by the key's weight", "bmm(do, W_v)", "bmm(do, W_k)"),
            ("dW_k scaled twice", "bmm(q.mT, dt)", "bmm((q * (1 / math.sqrt(d_head))).mT, dt)"),
            ("dW_v of the questions", "_of_text(u, heads)", "_of_text(t, heads)"),
            ("dW_k and dW_v swapped", "return dq, dx, dW_k, dW_v", "return dq, dx, dW_v, dW_k"),
            ("db averaged", "xp.sum(dout, axis=(0, 1))", "xp.mean(dout, axis=(0, 1))"),
            ("db of the first token", "xp.sum(dout, axis=(0, 1))", "xp.sum(dout[:, 0, :], axis=0)"),
            ("dx always", " if need_dx else None", ""),
        ],
        "absorbed:_by_head": [
            ("tokens and heads mixed", "xp.permute_dims(xp.reshape(x, (B * f, heads, d // heads)), (1, 0, 2))", "x"),
        ],
        "absorbed:_merge": [
            ("tokens and heads mixed", "xp.permute_dims(x, (1, 0, 2))", "x"),
        ],
        "absorbed:_by_text": [
            ("texts and heads mixed", "xp.permute_dims(xp.reshape(x, (heads, B, f, n)), (1, 0, 2, 3))", "x"),
        ],
        "absorbed:_of_text": [
            ("texts and heads mixed", "xp.permute_dims(xp.reshape(x, (B, heads, f, n)), (1, 0, 2, 3))", "x"),
        ],
        "models.transformer:SelfAttention.forward": [
            ("never absorbed", "if absorbing_is_cheaper(q.shape[1], x.shape[1], self.heads, q.shape[2]):", "if False:"),
            ("always absorbed", "if absorbing_is_cheaper(q.shape[1], x.shape[1], self.heads, q.shape[2]):", "if True:"),
            ("by the rows of one text", "math.prod(x.shape[:-1])", "x.shape[1]"),
            ("dropout skipped", "math.prod(x.shape[:-1]), rng)", "math.prod(x.shape[:-1]))"),
            ("a key that is not one matrix", "W_k is not None and ", ""),
            ("a value that is not one matrix", " and W_v is not None", ""),
            ("the key's bias for the value's", 'value.params.get("bias")', 'key.params.get("bias")'),
            ("keys and values swapped", "for layer in (key, value)", "for layer in (value, key)"),
            ("absorbed without the bias", '"bias"), self.heads, bias)', '"bias"), self.heads)'),
            ("a merged key forgotten", "(key.merged or value.merged)", "value.merged"),
            ("a merged value forgotten", "(key.merged or value.merged)", "key.merged"),
        ],
        "models.transformer:SelfAttention._absorbed_backward": [
            ("merged weights train", "if merged:", "if False:"),
            ("gradient of the key's bias", "0 * db_v", "db_v"),
            ("the value's gradient for the key", "key.grads_of_weight(dW_k,", "key.grads_of_weight(dW_v,"),
            ("no dx of the query", "dx[:, : d.shape[1], :] += d", "pass"),
            ("the query's dx to every token", "dx[:, : d.shape[1], :] += d", "dx += d[:, :1, :]"),
            ("the query always", "need_dx or query.trains()", "True"),
            ("the query for dx only", "need_dx or query.trains()", "need_dx"),
            ("the query only if it trains", "need_dx or query.trains()", "query.trains()"),
            ("dx always", "(dout, cache, need_dx)", "(dout, cache)"),
        ],
        "layers:Linear.grads_of_weight": [
            ("gradients of what is frozen", " if name in self.trainable", ""),
        ],
        "layers:Linear.effective_weight": [
            ("a copy", 'return self.params["weight"]', 'return +self.params["weight"]'),
        ],
        "adapters.lora:LoRALinear.grads_of_weight": [
            ("no scaling in dA", '(self.scaling * self.params["lora_B"])', 'self.params["lora_B"]'),
            ("no scaling in dB", "self.scaling * (dweight", "(dweight"),
            ("scaling twice in dB", "self.scaling * (dweight", "self.scaling**2 * (dweight"),
            ("gradients of what is frozen", " if name in self.trainable", ""),
            ("dA left out", 'if "lora_A" in self.trainable:', "if False:"),
        ],
        "adapters.lora:LoRALinear.effective_weight": [
            ("no dropout in training", "rng is not None and self.lora_dropout", "False"),
            ("no merging in evaluation", "rng is not None and self.lora_dropout", "self.lora_dropout"),
            ("merged in the dearer order", " if self._merges(N) else None", ""),
            ("merged and merged again", "if self.merged:", "if False:"),
            ("the base weight", "return self.merged_weight()", 'return self.params["weight"]'),
        ],
    },
    "test_transformer": {
        "models.transformer:SelfAttention.backward": [
            ("only the value's dx", "dx[:, : d.shape[1], :] += d", "pass"),
            ("only the query's dx", "dx[:, : d.shape[1], :] += d", "dx[...] = d"),
            ("the query's dx to every token", "dx[:, : d.shape[1], :] += d", "dx += d"),
            ("another projection's cache", "self.children.items(), caches,", "self.children.items(), caches[::-1],"),
            ("frozen projections skipped", "need_dx or child.trains()", "child.trains()"),
            ("every projection always", "need_dx or child.trains()", "True"),
        ],
        "models.transformer:SelfAttention.forward": [
            ("all tokens ask", "x if first is None else x[:, :first, :]", "x"),
            ("only their keys", "key.forward(x, rng)", "key.forward(x[:, :first, :], rng)"),
            (
                "only they are read",
                "key.forward(x, rng), value.forward(x, rng)",
                "key.forward(x[:, :first, :], rng), value.forward(x[:, :first, :], rng)",
            ),
            ("the bias of all tokens", "bias = bias[..., :first, :]", "pass"),
            ("the bias of the last tokens", "bias[..., :first, :]", "bias[..., -first:, :]"),
        ],
        "models.transformer:AddNorm.backward": [
            ("residual before the norm", "return dx, (dz if", "return dx, (dout if"),
            ("residual through dense", "return dx, (dz if", "return dx, (dx if"),
            ("norm left out", "].backward(dz, dense", "].backward(dout, dense"),
            ("below what trains", "need_dx or self.children", "True or self.children"),
        ],
        "models.transformer:PostNormBlock.forward": [
            ("no residual around the MLP", "output.forward(h, u, rng)", "output.forward(h, x, rng)"),
            ("no mask", "attention.forward(x, rng, bias, first", "attention.forward(x, rng, None, first"),
            ("all tokens ask", "rng, bias, first, keep)", "rng, bias, None, keep)"),
            ("scores kept all the same", "rng, bias, first, keep)", "rng, bias, first)"),
            ("slopes kept all the same", "forward(h, keep=keep)", "forward(h)"),
            ("residual of all tokens", "x[:, : a.shape[1], :]", "x"),
            ("residual of the last tokens", "x[:, : a.shape[1], :]", "x[:, -a.shape[1] :, :]"),
            ("no dropout in the MLP", "intermediate.forward(u, rng)", "intermediate.forward(u)"),
        ],
        "models.transformer:PostNormBlock.backward": [
            ("only past the MLP", "du + du_mlp,", "du,"),
            ("only through the MLP", "du + du_mlp,", "du_mlp,"),
            ("MLP twice", "du + du_mlp,", "du + 2 * du_mlp,"),
            ("no slope", "dh, _ = self.activation.backward(dh, activation_cache)", "pass"),
            ("only past attention", "dx_attention[:, : dx.shape[1], :] += dx", "dx_attention[...] = dx"),
            ("only through attention", "dx_attention[:, : dx.shape[1], :] += dx", "pass"),
            ("past attention to every token", "dx_attention[:, : dx.shape[1], :] += dx", "dx_attention += dx"),
            ("below the attention", "need_dx or attention.trains()", "True"),
            ("below the attention's output", "below_attention_output or attention_output.trains()", "True"),
            ("below the MLP", "below_intermediate or intermediate.trains()", "True"),
            ("stops too early", "below_intermediate or intermediate.trains()", "below_intermediate"),
        ],
        "models.transformer:PreNormBlock.forward": [
            ("scores kept all the same", "rng, bias, keep=keep)", "rng, bias)"),
            ("slopes kept all the same", "forward(h, keep=keep)", "forward(h)"),
            ("no residual around attention", "u += x", "u += n"),
            ("no residual around the MLP", "y += u", "y += n"),
            ("MLP of what was not normalised", "up.forward(n, rng)", "up.forward(u, rng)"),
        ],
        "models.transformer:PreNormBlock.backward": [
            ("only past the MLP", "du = dout + dn", "du = dout"),
            ("only through the MLP", "du = dout + dn", "du = dn"),
            ("residual of the output", "(du + dx if", "(dout + dx if"),
            ("only past attention", "(du + dx if", "(du if"),
            ("another norm's cache", 'through("norm1", dn, norm1_cache)', 'through("norm1", dn, norm2_cache)'),
            ("dx everywhere", "names.index(name) > lowest", "True"),
            ("no slope", "self.activation.backward(dh, activation_cache)[0]", "dh"),
            ("visits what lies below", "lowest = -1 if need_dx else", "lowest = -1 if True else"),
        ],
    },
    "test_bert": {
        "layers:Embedding.backward": [
            (
                "repeated ids overwrite",
                "scatter_add(dweight, xp.reshape(ids, (-1,)), F.rows(dout))",
                "dweight[ids] = dout",
            ),
            ("gradient of a frozen table", 'if "weight" not in self.trainable:', "if False:"),
        ],
        "layers:Embedding.check_input": [
            ("negative ids wrap", "not 0 <= ids.min()", "not -n <= ids.min()"),
        ],
        "models.bert:BertEmbeddings.forward": [
            ("no token type", "x + (p + t)", "x + p"),
            ("too long a sequence", "if ids.shape[1] > limit:", "if False:"),
        ],
        "models.bert:BertEmbeddings.backward": [
            ("positions of the first text", "sum(dx, axis=0)  # (T", "asarray(dx[0])  # (T"),
            ("token type of the first token", "sum(dp, axis=0, keepdims=True)", "asarray(dp[:1])"),
            ("token type averaged", "sum(dp, axis=0, keepdims=True)", "mean(dp, axis=0, keepdims=True)"),
            ("dout past the norm", "if not inside:", "dx = dout\n    if not inside:"),
        ],
        "models.bert:BertModel.forward": [
            ("padding unseen where one token is none", "mask.all()", "mask.any()"),
            ("everything kept", '{"first": first}, keep, bias', '{"first": first}, True, bias'),
            ("tokens hidden, not padding", "ids != PADDING", "ids == PADDING"),
            ("padding seen", '{"first": first}, keep, bias=bias', '{"first": first}, keep, bias=None'),
        ],
        "layers:Sequential.forward": [
            ("the first token in every block", "if i == len(self.children)", "if True"),
            ("all tokens in the last block", "(last or {}) if", "{} if"),
            ("caches kept all the same", "        if keep:\n", "        if True:\n"),
        ],
        "models.bert:BertModel.backward": [
            ("embeddings always", 'self.children["embeddings"].trains()', "True"),
            ("embeddings never", 'self.children["embeddings"].trains()', "False"),
        ],
        "models.bert:BertForSequenceClassification.forward": [
            ("two tokens, and the second", "ids, rng, 1, keep)", "ids, rng, 2, keep); h = h[:, ::-1, :]"),
            ("no tanh", "F.tanh(z)", "(z, F.tanh(z)[1])"),
        ],
        "models.bert:BertForSequenceClassification.backward": [
            ("no slope of tanh", "F.activation_backward(dpooled, tanh_cache)", "dpooled"),
        ],
        "models.classifier:Classifier.evaluate": [
            ("accuracy over all labels", "xp.sum(xp.astype(labels >= 0, logits.dtype))", "labels.size"),
        ],
        "models.bert:BertForTokenClassification.backward": [
            ("sign", ".backward(dh, bert_cache)", ".backward(-dh, bert_cache)"),
        ],
        "models.bert:BertForSentenceEmbedding.forward": [
            ("mean over padding too", "mask / xp.sum(mask, axis=1, keepdims=True)", "mask / mask.shape[1]"),
            ("sum, not mean", "mask / xp.sum(mask, axis=1, keepdims=True)", "mask"),
            ("padding counts", "ids != PADDING", "ids != 0"),
        ],
        "models.bert:BertForSentenceEmbedding.backward": [
            ("not shared out", "dout[:, None, :] * share[:, :, None]", "dout[:, None, :] * (share[:, :, None] > 0)"),
        ],
        "functional:tanh": [
            ("1 - y for 1 - y^2", "1 - y * y", "1 - y"),
            ("slope of y, not of x", "1 - y * y", "1 - x * x"),
        ],
    },
    # forward and backward agree, and both are wrong: a gradient check passes over these
    "test_functional": {
        "functional:softmax": [
            ("softmax writes into x", "array_namespace(x).asarray(x, copy=True)", "x"),
        ],
        "functional:gelu_erf_value": [
            ("Phi alone", "x * normal_cdf(x)", "normal_cdf(x)"),
        ],
        "functional:activation_backward": [
            ("a new array all the same", "if not overwrite:", "if True:"),
            ("dout written over unasked", "if not overwrite:", "if False:"),
        ],
        "functional:row_sums": [
            (
                "the last feature left out",
                "rows(x) @ ones(x.shape[-1:], x)",
                "rows(x)[:, :-1] @ ones((x.shape[-1] - 1,), x)",
            ),
            ("leading axes lost", "x.shape[:-1])", "(-1,))"),
        ],
        "functional:row_means": [
            ("sums", " * (1 / x.shape[-1])", ""),
            ("over d - 1", "x.shape[-1])", "(x.shape[-1] - 1))"),
            ("over the rows", "x.shape[-1]", "x.shape[0]"),
        ],
        "functional:shift": [
            ("complex", 'xp.real(x) if xp.isdtype(x.dtype, "complex floating") else x', "x"),
        ],
        "functional:softmax_": [
            ("softmax overflows", "x -= shift(x)", "pass"),
        ],
        "functional:softmax_cross_entropy": [
            ("cross entropy overflows", "logits - shift(logits)", "logits"),
        ],
        "functional:relu": [
            ("slope 1 at the kink", "astype(x > 0", "astype(x >= 0"),
            ("float64 slope", "x > 0, x.dtype", "x > 0, xp.float64"),
        ],
        "functional:softmax_cross_entropy_backward": [
            ("float64 gradient", "p.dtype", "xp.float64"),
        ],
        "functional:layer_norm": [
            ("layer norm without eps", "xhat) + eps)", "xhat))"),
        ],
    },
    "test_layers": {
        "layers:add_grads": [
            ("gradients overwritten, not added", "total[name] + grad if name in total else grad", "grad"),
            ("shards averaged", "total[name] + grad if", "(total[name] + grad) / 2 if"),
        ],
        "functional:linear_backward": [
            ("gradient of a frozen weight", ' if "weight" in needs else None', ""),
            ("gradient of a frozen bias", ' if "bias" in needs else None', ""),
        ],
        "functional:layer_norm_backward": [
            ("gradient of a frozen norm", 'if "weight" in needs:', "if True:"),
        ],
        "adapters.lora:LoRALinear.backward": [
            ("gradient of the frozen weight", '"weight" in self.trainable', "True"),
            ("gradient of a frozen A", '"lora_A" in self.trainable', "True"),
            ("dx always", "if not need_dx:", "if False:"),
        ],
        "layers:Layer.needs": [
            ("dx always", '{"x"} if need_dx else self.trainable', '{"x"}'),
            ("everything always", "self.trainable | {", "set(self.params) | {"),
        ],
        "layers:Activation.forward": [
            ("x written over unasked", "function(x, self.overwrite)", "function(x, True)"),
            ("x never written over", "function(x, self.overwrite)", "function(x)"),
            ("slopes kept all the same", "cache[0] if keep else None", "cache[0] if cache else None"),
            ("slopes computed all the same", "if keep else F.VALUES.get(self.name, F.ACTIVATIONS[self.name])", ""),
        ],
        "layers:Activation.backward": [
            ("dout written over unasked", "cache, self.overwrite)", "cache, True)"),
            ("dout never written over", "cache, self.overwrite)", "cache)"),
            ("dx always", "if need_dx else None", "if True else None"),
        ],
        "layers:Sequential.backward": [
            ("below what trains", "0 if need_dx else", "0 if True else"),
            ("dx everywhere", "need_dx or i > lowest", "True"),
            ("dx of the lowest", "need_dx or i > lowest", "need_dx or i >= lowest"),
            ("no dx above the lowest", "need_dx or i > lowest", "need_dx"),
        ],
        "layers:Sequential.forward": [
            ("dropout never drawn", "child.forward(x, rng, **context,", "child.forward(x, **context,"),
        ],
        "layers:Linear.forward": [
            ("a frozen weight keeps x", 'x if "weight" in self.trainable else None', "x"),
            ("no weight keeps x", 'x if "weight" in self.trainable else None', "None"),
            ("a trained bias keeps x", 'if "weight" in self.trainable', "if self.trainable"),
        ],
        "models.classifier:Classifier.loss_and_grad": [
            ("dropout never drawn", "self.forward(x, rng)", "self.forward(x)"),
            ("dx of the input", "need_dx=False", "need_dx=True"),
        ],
        "functional:activation_backward": [
            ("backward writes into dout", "return dout * slope", "dout *= slope; return dout"),
        ],
        "layers:Layer.set_trainable": [
            ("parameters without their path", '(f"{prefix}.{n}" if prefix else n)', "n"),
            ("trainable names pile up", "layer.trainable = {", "layer.trainable |= {"),
        ],
        "layers:Layer.to": [
            ("children stay behind", "child.to(xp, dtype)", "pass"),
        ],
    },
    "test_lora": {
        "adapters.lora:scaling_of": [
            ("alpha, not alpha / r", " / (math.sqrt(r) if use_rslora else r)", ""),
            ("alpha / r with rsLoRA", "math.sqrt(r) if use_rslora else r", "r"),
            ("alpha / sqrt(r) always", "if use_rslora else r", "if True else r"),
            ("r / alpha", "return float(check_alpha(lora_alpha)) /", "return 1 / float(lora_alpha) *"),
        ],
        "adapters.lora:initial_factors": [
            ("B moves", "else np.zeros(", "else np.ones("),
            ("A rests too", "rng.uniform(-(d_in**-0.5), d_in**-0.5, (", "np.zeros(("),
            ("A by the rank", "(-(d_in**-0.5), d_in**-0.5,", "(-(r**-0.5), r**-0.5,"),
            ("A positive", "(-(d_in**-0.5), d_in", "(0, d_in"),
            ("std 1 / sqrt(r)", "0, 1 / r,", "0, r**-0.5,"),
        ],
        "adapters.lora:LoRALinear.forward": [
            ("not rescaled", " / (1 - p)", " / 1.0"),
            ("rescaled by p", " / (1 - p)", " / p"),
            ("keeps p", ">= p", "< p"),
            ("one mask for the batch", "rng.random(x.shape)", "rng.random(x.shape[-1])"),
        ],
        "adapters.lora:LoRALinear.effective_weight": [
            ("no dropout in the merged order", "rng is not None and self.lora_dropout", "False"),
            ("formed again by every forward", "return shared", "return self.merged_weight()"),
            ("not for one row", "is not None:  #", "is not None and self._merges(N):  #"),
            ("read twice", "return shared", "return self._shared_weight"),
        ],
        "adapters.lora:shared_weights": [
            ("weight of another layer", "merged_weight, layers)", "merged_weight, layers[::-1])"),
            ("update without the weight", "LoRALinear.merged_weight", "LoRALinear.delta_weight"),
            ("not dropped", "layer._shared_weight = None", "pass"),
            ("not dropped after an error", "    finally:", "    except ZeroDivisionError: raise\n    else:"),
            ("shared with dropout", "(layer.merged or layer.lora_dropout)", "layer.merged"),
            ("merged twice", "(layer.merged or layer.lora_dropout)", "layer.lora_dropout"),
            ("in the dearer order too", " and layer._merges(N)", ""),
        ],
        "adapters.lora:LoRALinear._merges": [
            ("always", 'self.order == "merged" or (', "True or ("),
            ("never by itself", 'self.order == "auto" and', "False and"),
        ],
        "adapters.lora:merging_is_cheaper": [
            ("orders swapped", ") > d_in", ") < d_in"),
            ("a tie merges", "> d_in * d_out", ">= d_in * d_out"),
        ],
        "adapters.lora:LoRALinear.merge": [
            ("merge subtracts", "self.merged_weight()", 'self.params["weight"] - self.delta_weight()'),
            ("merge twice adds twice", "if not self.merged:", "if True:"),
            (
                "merge writes into the base",
                "self.merged_weight()",
                'self.params["weight"].__iadd__(self.delta_weight())',
            ),
        ],
        "adapters.lora:LoRALinear.unmerge": [
            (
                "unmerge subtracts",
                "= self._unmerged_weight, None",
                '= self.params["weight"] - self.delta_weight(), None',
            ),
            ("unmerge copies", "= self._unmerged_weight, None", "= +self._unmerged_weight, None"),
        ],
        "adapters.inject:inject": [
            ("the rest trains on", "if config.trains_in_full(name, chosen)", ""),
            ("patterns unread", "config.for_layers(chosen)", "{p: (config.r, config.lora_alpha) for p in chosen}"),
            ("every layer alike", "rng=rng", "rng=0"),
            ("a refusal freezes", "    chosen, linears =", "    model.freeze()\n    chosen, linears ="),
        ],
        "adapters.inject:unload": [
            ("the rest trains", "plain.trainable = set()", "pass"),
        ],
        "adapters.config:LoRAConfig._values": [
            (
                "the last match",
                "zip(patterns.values(), found, strict=True)",
                "reversed([*zip(patterns.values(), found)])",
            ),
        ],
        "adapters.config:LoRAConfig._ends": [
            ("anywhere", "SUFFIX.format(p)", "'.*' + p"),
        ],
        "adapters.config:_numbers": [
            ("no block 0", "isinstance(value, numbers.Integral):", "isinstance(value, numbers.Integral) and value:"),
        ],
        "adapters.selection:select": [
            ("the output layer too", " if path != output_layer", ""),
            ("exclusion unread", " if path not in excluded", ""),
        ],
        "adapters.selection:_targeted": [
            ("block 0 is none", "if blocks is None:", "if not blocks:"),
            ("a full path in its block only", "path in targets or ", ""),
            ("blocks counted from 1", "block[path] in wanted", "block[path] + 1 in wanted"),
        ],
        "adapters.selection:is_target": [
            ("by any end", 'endswith("." + target)', "endswith(target)"),
        ],
        "adapters.selection:is_saved": [
            ("itself only", "range(1, len(parts) + 1)", "[len(parts)]"),
            ("by whole names", "endswith(module)", "endswith('.' + module)"),
        ],
        "adapters.memory:memory_table": [
            ("no gradients", "(1 + optimizer_slots)", "optimizer_slots"),
        ],
    },
    "test_parallel": {
        "parallel:cut": [
            ("the last shard left out", "range(n + 1)", "range(n)"),
            ("overlapping", "slice(*edge)", "slice(edge[0], edge[1] + 1)"),
            ("an odd number", "2 * max(1, round(tokens(x) / (2 * size)))", "max(2, round(tokens(x) / size))"),
            ("of 512 tokens always", "(2 * size)", "(2 * SHARD_TOKENS)"),
            ("more shards than rows", "min(rows, 2 * max(1", "(2 * max(1"),
            ("all that is left to the last", "i * rows // n for", "min(i * (rows // n), rows) if i < n else rows for"),
            ("small batches cut too", "1 if small else", "1 if False else"),
            ("one shard always", "1 if small else", "1 if True else"),
            ("rows, not tokens", "small = x.shape[0], tokens(x)", "small = x.shape[0], x.shape[0]"),
        ],
        "parallel:Workers.predict": [
            ("shards as in training", "cut(x, 2 * SHARD_TOKENS)", "cut(x)"),
            ("the batch in one piece", "cut(x, 2 * SHARD_TOKENS)", "[slice(None)]"),
            (
                "the last shard alone",
                "parts[0] if len(parts) == 1 else array_namespace(*parts).concat(parts)",
                "parts[-1]",
            ),
            ("in another order", ".concat(parts)", ".concat(parts[::-1])"),
            ("every shard the first rows", "x[shard, ...]", "x[: shard.stop - shard.start, ...]"),
            ("nothing is left to BLAS", "self.n if few else 1", "1"),
            ("everything is left to BLAS", "self.n if few else 1", "self.n"),
            ("features are left to BLAS", " and are_ids(x)", ""),
            ("what is left to BLAS on another thread", "(map if few else self.map)", "self.map"),
        ],
        "parallel:tokens": [
            ("features counted", "if are_ids(x) else x.shape[0]", ""),
            ("texts counted", "math.prod(x.shape) if are_ids(x) else", ""),
        ],
        "parallel:Workers.shards": [
            ("gradients as of a batch each", "rng, share)", "rng)"),
            ("share of the first shard", "share = count /", "share = counts[0] /"),
            ("as many count in every shard", "share = count / sum(counts)", "share = 1 / len(counts)"),
            ("share of the part", "share = count / sum(counts)", "share = count / sum(counts[part])"),
            ("losses added, not averaged", "return share * loss", "return loss"),
            ("labels of the first rows", "y[shard, ...], rng", "y[: shard.stop - shard.start, ...], rng"),
            ("dropout never drawn", "[None] * len(shards) if rng is None else", "[None] * len(shards) if True else"),
            ("one dropout for every shard", "rng.spawn(len(shards))", "[rng] * len(shards)"),
            ("dropout of other shards", "rngs[part]", "rngs[: len(shards[part])]"),
            ("every part computes all", "shards[part], rngs[part], counts[part]", "shards, rngs, counts"),
            ("updates formed by every shard", "shared_weights(model, tokens(x), self.map)", "contextlib.nullcontext()"),
            ("updates as for one text", "shared_weights(model, tokens(x)", "shared_weights(model, 1"),
            ("updates formed for no shard", "if shards[part]:", "if True:"),
            ("too many targets pass", "if x.shape[0] != y.shape[0] or", "if x.shape[0] > y.shape[0] or"),
            ("nothing is left to BLAS", "self.n if few else 1", "1"),
            ("everything is left to BLAS", "self.n if few else 1", "self.n"),
            ("features are left to BLAS", " and are_ids(x)", ""),
            ("what is left to BLAS on another thread", "(map if few else self.map)", "self.map"),
        ],
        "parallel:Workers.loss_and_grad": [
            ("loss of the last shard", "loss + shard_loss", "shard_loss"),
            ("gradients of the last shard", "add_grads(grads, shard_grads)", "shard_grads"),
            ("gradients of the first shard", "add_grads(grads, shard_grads)", "grads or shard_grads"),
        ],
        "parallel:Workers.map": [
            ("without the error state", "context.run(function, *a)", "function(*a)"),
            ("one after another", "if self._at_work() != os.getpid() or self._pool is None:", "if self._at_work():"),
            ("at work or not", "self._at_work()", "os.getpid()"),
        ],
        "parallel:Workers.__enter__": [
            ("BLAS as before", "self._blas.limit(limits=1)", "self._blas.limit(limits=None)"),
        ],
        "parallel:Workers.__exit__": [
            ("BLAS and threads stay", "self._stack.__exit__(*error)", "pass"),
        ],
        "parallel:Workers.__init__": [
            ("no workers", 'check_integer("workers", n)', 'check_integer("workers", n, 0)'),
        ],
        "errors:check_integer": [
            ("True is a number", "isinstance(value, bool)", "False"),
        ],
        "models.classifier:Classifier.count": [
            ("every label", "target >= 0", "target >= -100"),
            ("values as labels", 'if self.loss != "cross_entropy"', "if False"),
            ("labels as values", 'if self.loss != "cross_entropy"', "if True"),
        ],
        "jobs:evaluate": [
            ("mean of the batches' means", "return int(np.count_nonzero(y >= 0)), *model", "return 1, *model"),
        ],
        "predictions:for_each": [
            (
                "updates formed for every batch",
                "shared_weights(model, sum(tokens(x) for x, *_ in batches)",
                "shared_weights(model, 1",
            ),
        ],
    },
    "test_metrics": {
        "metrics:report": [
            ("given and true exchanged", "labels * k + logits.argmax(axis=1)", "logits.argmax(axis=1) * k + labels"),
            ("the last of equals", "logits.argmax(axis=1)", "(k - 1 - logits[:, ::-1].argmax(axis=1))"),
            ("overflow", "logits - logits.max(axis=1, keepdims=True)", "logits"),
            ("the sum of the losses", "loss.mean()", "loss.sum()"),
            ("the first row that is finite", "finite.argmin()", "finite.argmax()"),
            ("Inf is a number", "np.isfinite(logits)", "~np.isnan(logits)"),
            ("a class too many", "labels.max() < k", "labels.max() <= k"),
        ],
        "metrics:Report.macro_f1.fget": [
            ("every class", "self.counts + self.predicted > 0", "self.counts >= 0"),
            ("classes that are true", "self.counts + self.predicted > 0", "self.counts > 0"),
        ],
        "metrics:Report.precision.fget": [("recall", "self.predicted", "self.counts")],
        "metrics:Report.recall.fget": [("precision", "self.counts", "self.predicted")],
        "metrics:Report.f1.fget": [("without the 2", "2 * np.diag", "np.diag")],
        "metrics:Report.accuracy.fget": [("mean recall", "np.trace(self.confusion) / self.rows", "self.recall.mean()")],
    },
    "test_labels": {
        "labels:label_name": [
            ("blanks count", "value.strip()", "value.strip() and value"),
            ("1.0 is not 1", "value = int(value)", "pass"),
        ],
        "labels:named_labels": [
            ("1 and 1.0 are two labels", "!= label:", "!= label and False:"),
        ],
        "labels:in_order": [
            ("numbers as text", "if None in numbers.values()", "if True"),
            ("in the order they come in", "sorted({*names})", "[*dict.fromkeys(names)]"),
        ],
    },
    "test_text": {
        "text:_numbered": [
            ("numbered as they come", "in_order(labels)", "[*dict.fromkeys(labels)]"),
        ],
        "text:_hash": [
            ("line ends count", '" ".join(text.split())', "text"),
        ],
        "text:_tested": [
            ("a class without test rows", "tested.add(min(movable))", "pass"),
            ("a class without training rows", "tested.discard(max(movable))", "pass"),
        ],
        "text:TextTask.split.__func__": [
            ("test rows trained on", " if hashes[i] not in tested]", "]"),
        ],
        "text:TextTask.validation": [
            ("chosen as the test rows were", 'f"validation {text}"', "text"),
        ],
        "text:TextTask.numbered": [
            ("numbers of the file's own", "(text, number[label])", "(text, label)"),
        ],
    },
    "test_data": {
        "data:_standardised": [
            ("test rows by their own mean", "(x - mean)", "(x - x.mean(axis=0))"),
            ("test rows from their own first", "test - train[0]", "test - test[0]"),
            ("rounding scaled up", "scale[~varies] = 1", "varies[:] = True"),
        ],
        "data:csv_task": [
            ("numbers as text", "in_order(labels)", "sorted({*labels})"),
        ],
    },
    "test_pretrained": {
        "models.pretrained:label_names": [
            ("in the order of the file", "[names[str(i)] for i in range(len(names))]", "[*names.values()]"),
            ("10 before 2", "[names[str(i)] for i in range(len(names))]", "[names[i] for i in sorted(names)]"),
        ],
    },
    "test_adapter_formats": {
        "adapter_formats:_read_mlx": [
            ("factors not transposed", "array.T", "array"),
            ("factors reshaped", "array.T", "array.reshape(array.T.shape)"),
            ("scale for alpha", 'parameters["scale"] * r', 'parameters["scale"]'),
        ],
    },
    "test_low_rank": {
        "low_rank:rank_errors": [
            ("squares underflow", "largest * np.sqrt(np.cumsum((s / (largest or 1))", "np.sqrt(np.cumsum((s)"),
            ("in units of the largest", "largest * np.sqrt", "np.sqrt"),
            ("what is kept", "[::-1] ** 2)[::-1]", " ** 2)"),
        ],
        "low_rank:truncate_for_inputs": [
            ("errors without the units of R", "* w * x", "* w"),
        ],
        "low_rank:stable_rank": [
            ("norms, not squares", "(s / largest) ** 2", "s / largest"),
        ],
        "low_rank:activation_factor": [
            ("the last batch alone", "X if R is None else xp.concat([R, X], axis=0)", "X"),
        ],
    },
    "test_spectra": {
        "spectra:spectrum": [
            ("of the weights, not the outputs", "output_errors(W, R)", "rank_errors(s)"),
            ("in the unit of the weights", ", plain[0])", ", rank_errors(s)[0])"),
        ],
        "spectra:_relative": [
            ("zeros by zero", " if unit else np.zeros_like(errors)", ""),
        ],
        "spectra:most_compressible": [
            ("by the rank, whatever the size", ' / min(row["shape"])', ""),
            ("zeros first", 'not row["rank_90"], ', ""),
        ],
    },
    "test_hooks": {
        "hooks:Evaluation.after_step": [
            ("the last of equals", "loss < self.best[1]", "loss <= self.best[1]"),
            ("the best weights stay zeros", "array[...] = params", "_ = params"),
        ],
        "hooks:Evaluation.start": [
            ("the best forgotten by a resume", "min(past, key=lambda row: row[1], default=None)", "None"),
        ],
        "hooks:Evaluation.finish": [
            ("the last weights", "params[name][...] = array", "pass"),
        ],
        "resume:live": [
            ("the best weights not in the checkpoint", " | hooks.arrays(params)", ""),
        ],
    },
    "test_sweep": {
        "sweep:against_full": [
            ("minus the last seed", 'full[row["seed"]]', "[*full.values()][-1]"),
        ],
        "sweep:mean_and_error": [
            ("standard deviation", " / math.sqrt(n)) if", ") if"),
        ],
        "sweep:Setting.recipe": [
            ("nearest by difference", "abs(math.log(k / r))", "abs(k - r)"),
        ],
        "rank_rows:start": [
            ("PEFT's scaling always", "use_rslora=recipe.use_rslora", "use_rslora=False"),
        ],
    },
    "test_encoder_sweep": {
        "rank_rows:relative_error": [
            (
                "the last matrix alone",
                "np.sum(w**2) for w in want.values()",
                "np.sum(w**2) for w in [w for w in want.values()][-1:]",
            ),
        ],
        "rank_rows:truncation_rows": [
            ("the head of the base", "_put(rest, model)", "pass"),
            ("the head not counted", "params + count(rest)", "params"),
        ],
        "encoder_sweep:_Tap.fold": [
            ("the last inputs alone", "[] if self.R is None else [self.R]", "[]"),
        ],
    },
    "test_predict": {
        "predictions:_probabilities": [
            ("in the order of their lengths", "y[rows] = own", "y[:] = np.concatenate(logits)"),
            ("softmax over the texts", "y / y.sum(axis=1, keepdims=True)", "y / y.sum(axis=0, keepdims=True)"),
        ],
        "predictions:Prediction.of.__func__": [
            ("the last of equals", "int(row.argmax())", "int(len(row) - 1 - row[::-1].argmax())"),
        ],
    },
    "test_backend": {
        "backend:normal_cdf": [
            ("a coefficient left out", "PHI[-2:0:-1]", "PHI[-2:1:-1]"),
            ("a power of x left out", "cdf *= square", "pass"),
            ("not odd", "cdf *= x", "cdf *= np.abs(x)"),
            ("from -1 to 1", "cdf *= 0.5\n    cdf += 0.5", "pass"),
            ("written into x", "square = np.square(x)", "square = np.square(x, out=x)"),
            ("no arrays without axes", " and x.ndim)", ")"),
            ("warns far out", 'np.errstate(over="ignore")', "np.errstate()"),
            ("float64 by the polynomial", "x.dtype == np.float32", "x.dtype != np.complex128"),
        ],
        "backend:_in_blocks": [
            ("elements in the order of memory", "x.reshape(-1)", 'x.reshape(-1, order="K")'),
            ("the first block again", "if start else first", "if start > BLOCK else first"),
            ("everything in the dtype of x", "y.dtype", "x.dtype"),
            ("flat", "out.reshape(x.shape)", "out"),
            ("over its input never", "[flat] * overwrite", "[np.empty(flat.shape, x.dtype)] * overwrite"),
            ("over its input always", "[flat] * overwrite", "[flat]"),
            (
                "the first output over the input",
                "outputs += [flat] * overwrite",
                "outputs = [flat] * overwrite + outputs",
            ),
        ],
        "backend:fuse": [
            ("over its input unasked", "overwrite and x.flags.c_contiguous", "x.flags.c_contiguous"),
            ("no blocks", "x.size > 2 * BLOCK", "False"),
        ],
        "backend:exp_": [
            ("a copy", "xp.exp(x, out=x)", "xp.exp(x)"),
        ],
    },
    "test_optim": {
        "optim:SGD.update": [
            ("up the hill", "p -= lr", "p += lr"),
            ("no momentum", "v *= self.momentum", "v *= 0"),
            ("damped gradient", "v += g\n", "v += (1 - self.momentum) * g\n"),
            ("Nesterov", "lr * v", "lr * (g + self.momentum * v)"),
            ("decay grows", "v += self.weight_decay", "v -= self.weight_decay"),
            ("not in place", "p -= lr * v", "p = p - lr * v"),
        ],
        "optim:AdamW.update": [
            ("m not corrected", "(lr / (1 - b1**t)) * m", "lr * m"),
            ("v not corrected", "root / math.sqrt(1 - b2**t)", "root"),
            ("v corrected without the root", "math.sqrt(1 - b2**t)", "(1 - b2**t)"),
            ("corrections one step late", "self.step_count", "self.step_count + 1"),
            ("decay in the gradient too", "m *= b1", "g = g + self.weight_decay * p; m *= b1"),
            ("decay without the rate", "1 - lr * self.weight_decay", "1 - self.weight_decay"),
            ("eps inside the root", "sqrt(v)", "sqrt(v + self.eps)"),
            ("no eps", " + self.eps)", ")"),
            ("betas swapped", "(b1, b2), t", "(b2, b1), t"),
            ("whole gradient into m", "(1 - b1) * g", "g"),
            ("gradient not squared", "(g * g)", "abs(g)"),
            ("no root", "array_namespace(v).sqrt(v)", "v"),
        ],
        "optim:Optimizer.step": [
            ("steps not counted", "self.step_count += 1", "pass"),
            ("schedule unread", "self.lr * lr_factor", "self.lr"),
        ],
        "optim:schedule": [
            ("warm-up from 0", "(step + 1) / warmup", "step / warmup"),
            ("schedule starts before warm-up ends", "(step - warmup)", "step"),
            ("schedule ends late", "max(1, total - warmup)", "total"),
        ],
        "optim:grad_norm": [
            ("norm not rooted", "return math.sqrt(total)", "return total"),
        ],
        "optim:squared_norm": [
            ("norm of the largest entry", "xp.sum(v * v, dtype=xp.float64)", "xp.max(v * v)"),
            ("summed in the gradients' dtype", ", dtype=xp.float64", ""),
            ("gradients not squared", "v * v", "abs(v)"),
        ],
        "optim:groups": [
            ("in the order they come in", "sorted(arrays)", "arrays"),
            ("two dtypes end to end", " or array.dtype != dtype", ""),
        ],
        "optim:clip_grad_norm": [
            ("clipped to max_grad_norm times the norm", "max_grad_norm / norm", "max_grad_norm"),
            ("small gradients scaled up", "and norm > max_grad_norm", "and norm != max_grad_norm"),
        ],
    },
}

# what a failing test raises; a NameError or AttributeError would be a mistake in this table
FAILURES = (AssertionError, TypeError, ValueError, LookupError, ArithmeticError, RuntimeWarning, NonFiniteError)
FAILURES += (pytest.fail.Exception,)


FIXTURES = {  # on NumPy; a module's own are made of these
    "xp": lambda: np,
    "put": lambda: lambda host, dtype=None: np.array(host, dtype),
    "rng": lambda: np.random.default_rng(0),
    "monkeypatch": pytest.MonkeyPatch,
    "tmp_path": lambda: Path(tempfile.mkdtemp(dir=folder())),
    "tmp_path_factory": lambda: types.SimpleNamespace(mktemp=lambda name: FIXTURES["tmp_path"]()),
}
SHARED = {}  # {(module, name): (value, code that ran)} of fixtures with a scope
RECORDS = []  # sets that get the code of every function that is called


@functools.cache
def folder():
    """For all that the tests write; it goes when the process ends."""
    path = tempfile.mkdtemp(prefix="lorabook-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def function_at(target):
    return inspect.unwrap(pkgutil.resolve_name(f"lorabook.{target}"))


@contextlib.contextmanager
def applied(target, fragment, replacement):
    """The mutant in place of the original: its code goes into the function itself, so that every reference sees it."""
    function = function_at(target)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(fragment) == 1, f"{fragment!r} occurs {source.count(fragment)} times in {target}"
    module = compile(source.replace(fragment, replacement), f"<mutant of {target}>", "exec")
    original = function.__code__
    function.__code__ = next(c for c in module.co_consts if isinstance(c, types.CodeType))
    try:
        yield
    finally:
        function.__code__ = original


@functools.cache
def tests_of(module):
    """[(name, call)]: the module's tests whose fixtures can be made here, with every set of parameters."""
    tests, own = [], vars(importlib.import_module(module))
    for name, function in own.items():
        marks = getattr(function, "pytestmark", ())
        if name.startswith("test_") and not any(mark.name == "skipif" and mark.args[0] for mark in marks):
            sets_of = [_parameters(*mark.args) for mark in marks if mark.name == "parametrize"]
            for sets in itertools.product(*sets_of):
                parameters = {k: v for s in sets for k, v in s.items()}
                needed = inspect.signature(function).parameters.keys() - parameters.keys()
                if all(_can_be_made(fixture, own) for fixture in needed):
                    tests.append((name, functools.partial(_call, module, function, parameters, needed)))
    return tests


def _parameters(names, values):
    names = [n.strip() for n in names.split(",")] if isinstance(names, str) else names
    return [dict(zip(names, value if len(names) > 1 else [value], strict=True)) for value in values]


def _call(module, function, parameters, needed):
    made = {}
    try:
        function(**parameters, **{name: _value(name, module, made) for name in needed})
    finally:
        if "monkeypatch" in made:
            made["monkeypatch"].undo()


def _can_be_made(name, own):
    function = inspect.unwrap(own.get(name))
    if name in FIXTURES or function is own.get(name) or inspect.isgeneratorfunction(function):
        return name in FIXTURES
    return all(_can_be_made(needed, own) for needed in inspect.signature(function).parameters)


def _value(name, module, made):
    """What a fixture gives in one test. made: {name: value} of those that the test has already."""
    function = FIXTURES.get(name) or inspect.unwrap(vars(importlib.import_module(module))[name])
    if name not in FIXTURES and "scope=" in inspect.getsource(function).partition("def ")[0]:
        if (module, name) not in SHARED:
            with _recorded() as ran:
                SHARED[module, name] = _made(function, module, made), ran
        made[name], ran = SHARED[module, name]
        for record in RECORDS:
            record |= ran
    elif name not in made:
        made[name] = _made(function, module, made)
    return made[name]


def _made(function, module, made):
    return function(**{name: _value(name, module, made) for name in inspect.signature(function).parameters})


@functools.cache
def unmutated(module):
    """[(name, call, code that ran)] of the module's tests, which all pass: what one of them raises, this raises."""
    runs = []
    for name, call in tests_of(module):
        with _recorded() as ran:
            call()
        runs.append((name, call, ran))
    return runs


@contextlib.contextmanager
def _recorded():
    """The set of all code that runs meanwhile, here and in the threads that are started."""
    ran, before = set(), sys.getprofile()
    RECORDS.append(ran)
    threading.setprofile(_record)
    sys.setprofile(_record)
    try:
        yield ran
    finally:
        RECORDS.pop()
        sys.setprofile(before)
        threading.setprofile(_record if RECORDS else None)


def _record(frame, event, argument):
    if event == "call":
        for ran in RECORDS:
            ran.add(frame.f_code)


def noticed(module, target, fragment, replacement):
    """Name of the first test of the module that fails with this slip in the target; None if all pass.

    Only those are run in which the target ran without the slip: the others cannot notice. What tests share is made
    again, with the slip, if the target ran for it.
    """
    code = function_at(target).__code__
    tests = [(name, call) for name, call, ran in unmutated(module) if code in ran]
    without_slip = dict(SHARED)
    for fixture, (_, ran) in without_slip.items():
        if code in ran:
            del SHARED[fixture]
    try:
        with applied(target, fragment, replacement):
            for name, call in tests:
                try:
                    call()
                except FAILURES:
                    return name
    finally:
        SHARED.clear()
        SHARED.update(without_slip)
    return None
