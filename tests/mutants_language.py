"""Slips in what decoders are made of, in quantised weights and in the data of language models; see `mutants`.

LANGUAGE: {test module that has to notice: {function: [(name of the slip, fragment of the source, replacement)]}}.
"""

LANGUAGE = {
    "functional.test_decoder_functions": {
        "functional.rotary:rotary": [
            ("turned the other way", "-= turned[0]", "+= turned[0]"),
            ("the second half turned back", "+= turned[1]", "-= turned[1]"),
            (
                "halves swapped",
                "one, two = heads[..., :half], heads[..., half:]",
                "two, one = heads[..., :half], heads[..., half:]",
            ),
            ("neighbours in pairs", "heads[..., :half], heads[..., half:]", "heads[..., 0::2], heads[..., 1::2]"),
        ],
        "functional.rotary:rotary_backward": [
            ("forward's angle", "cos, -sin", "cos, sin"),
            ("the mirror image", "cos, -sin", "-cos, sin"),
        ],
        "functional.rotary:rotary_angles": [
            ("of the position after", "xp.astype(positions, xp.float64)", "(xp.astype(positions, xp.float64) + 1)"),
            (
                "sine for cosine",
                "xp.astype(xp.cos(angles), like.dtype), xp.astype(xp.sin",
                "xp.astype(xp.sin(angles), like.dtype), xp.astype(xp.cos",
            ),
        ],
        "functional.rotary:rotary_frequencies": [
            (
                "one power for each entry",
                "theta ** (-np.arange(0, d_head, 2) / d_head)",
                "theta ** (-np.arange(d_head // 2) / d_head)",
            ),
            ("growing with i", "theta ** (-np", "theta ** (np"),
            ("linear: times the factor", 'w / scaling["factor"]', 'w * scaling["factor"]'),
            ("llama3: the mix the other way", "(1 - t) / factor + t", "t / factor + (1 - t)"),
            ("llama3: not clipped", "np.clip(", "(lambda t, *_: t)("),
            ("llama3: wave lengths without 2 pi", "(2 * math.pi)", "1"),
            ("llama3: long waves as they are", "w * ((1 - t) / factor", "w * ((1 - t)"),
        ],
        "functional.gated:_gated": [
            ("gate and up swapped", "xp.tanh(0.5 * gate)", "xp.tanh(0.5 * up)"),
            ("tanh of the gate", "xp.tanh(0.5 * gate)", "xp.tanh(gate)"),
        ],
        "functional.gated:_gated_backward": [
            ("slope of sigma alone", "slope += sigma", "pass"),
            ("up left out of dgate", "slope *= up", "pass"),
            ("dup without silu", "return slope, value", "return slope, dout * gate"),
        ],
        "functional.norms:rms_norm": [
            ("eps left out", "row_means(x * x) + eps", "row_means(x * x)"),
            ("eps outside the root", "xp.sqrt(row_means(x * x) + eps)", "(xp.sqrt(row_means(x * x)) + eps)"),
            ("mean over the batch", "row_means(x * x)", "xp.mean(x * x, axis=0, keepdims=True)"),
            ("sum for mean", "row_means(x * x)", "xp.sum(x * x, axis=-1, keepdims=True)"),
        ],
        "functional.norms:rms_norm_again": [
            ("weight left out", "y *= weight", "pass"),
        ],
        "functional.norms:rms_norm_backward": [
            ("weight left out of dx", "dx = dout * weight", "dx = dout * 1"),
            ("rstd^2 left out", "* (rstd * rstd)", "* 1"),
            ("sign of the second term", "dx -= x * along", "dx += x * along"),
            ("second term left out", "dx -= x * along", "pass"),
            ("rstd left out of dx", "dx *= rstd", "pass"),
            ("dweight without rstd", "dout * (x * rstd)", "dout * x"),
        ],
        "functional.language_loss:language_loss": [
            ("labels of the first chunk", "labels[rows]", "labels[: rows.stop - rows.start]"),
            (
                "hidden states of the first chunk",
                "cross_entropy_(h[rows, :] @",
                "cross_entropy_(h[: rows.stop - rows.start, :] @",
            ),
            ("dh of the first chunk", "dh[rows, :] = dlogits", "dh[: rows.stop - rows.start, :] = dlogits"),
            ("dW of the last chunk", "dW += dlogits.T @ h[rows, :]", "dW[...] = dlogits.T @ h[rows, :]"),
            ("loss of the last chunk", "loss = loss + own", "loss = own"),
            ("sum for mean", "loss * (1 / h.shape[0])", "loss"),
            ("gradients of the sum", "share / h.shape[0]", "share"),
            ("share left out", "part = 0.0, share / h", "part = 0.0, 1 / h"),
        ],
        "functional.language_loss:cross_entropy_": [
            ("p + onehot", "labels] -= share", "labels] += share"),
            ("label not taken off", "logits[arange_like(N, labels), labels] -= share", "pass"),
            ("share left out of p", "logits *= share / total", "logits *= 1 / total"),
            ("not shifted", "top = shift(logits)", "top = 0 * shift(logits)"),
            ("label's logit not shifted", "axis=-1) - top", "axis=-1)"),
        ],
        "functional.language_loss:chunks": [
            ("the last chunk forgotten", "for i in range(n)]", "for i in range(max(1, n - 1))]"),
        ],
    },
    "functional.test_grouped": {
        "functional.grouped:causal_spans": [
            (
                "padding that sees nothing has no span",
                "first, stop = np.where(none, i, first), np.where(none, i + 1, stop)",
                "pass",
            ),
            (
                "a segment ends a token early",
                "[segments[:, :1] != segments[:, :1], segments[:, 1:] != segments[:, :-1]]",
                "[segments[:, 1:] != segments[:, :-1], segments[:, :1] != segments[:, :1]]",
            ),
            ("a token does not see itself", "0 * i, i + 1", "0 * i, i"),
            ("sees the next", "0 * i, i + 1", "0 * i, i + 2"),
            ("segments see each other", "first = _running_max(xp.where(begins, i, 0 * i), xp)", "first = 0 * segments"),
            ("holes in the mask are seen", "None if whole.all() else ~real", "None"),
            ("padding on the left is seen", "np.maximum(first, begin)", "first"),
        ],
        "functional.grouped:_running_max": [
            ("one step only", "step *= 2", "step = T"),
        ],
        "functional.grouped:grouped_attention": [
            ("log-sum-exp without the maximum", "top + xp.log(total)", "xp.log(total)"),
            ("sum for its logarithm", "top + xp.log(total)", "top + total"),
            ("o not normalised", "own *= (1 / total).mT", "pass"),
            (
                "all keys for each tile",
                "own = bmm(e.mT, vb[:, :, keys, :])",
                "own = bmm(e.mT, vb[:, :, : e.shape[-2], :])",
            ),
            ("softmax over queries", "xp.sum(e, axis=-2, keepdims=True)", "xp.sum(e, axis=-1, keepdims=True).mT"),
        ],
        "functional.grouped:grouped_attention_backward": [
            ("row sum without o", "dout * o", "dout"),
            ("row sum left out", "dscores -= reshape(D[block][:, :, :, rows], line)", "pass"),
            ("without p", "dscores *= p", "pass"),
            ("lse left out", "p -= reshape(lse[block][:, :, :, rows], line)", "pass"),
            ("dq not scaled", "dq *= c", "pass"),
            ("dk of the last tile", "dkb[:, :, keys, :] += bmm(dscores, qt)", "dkb[:, :, keys, :] = bmm(dscores, qt)"),
            ("dv of the last tile", "dvb[:, :, keys, :] += bmm(p, do)", "dvb[:, :, keys, :] = bmm(p, do)"),
            ("dk and dv swapped", "return dq, dk, dv", "return dq, dv, dk"),
            (
                "dk of the first head of a group",
                "bmm(dscores, qt)  #",
                "bmm(dscores[..., : rows.stop - rows.start], qt[:, :, : rows.stop - rows.start, :])  #",
            ),
            (
                "dv of the first head of a group",
                "+= bmm(p, do)",
                "+= bmm(p[..., : rows.stop - rows.start], do[:, :, : rows.stop - rows.start, :])",
            ),
            ("gradients of the first block", "dk_[block][...] = dkb", "dk_[: dkb.shape[0], : dkb.shape[1]][...] = dkb"),
        ],
        "functional.grouped:_scores": [
            ("small penalty", "float(xp.finfo(e.dtype).min / 2)", "-10.0"),
            ("of the first keys", "by_head[:, :, keys, :, :]", "by_head[:, :, : hidden.shape[-2], :, :]"),
        ],
        "functional.grouped:_unseen": [
            ("padding sees nothing at all", " & (stop - first != 1)", ""),
            ("first key of a segment unseen", "(j < first)", "(j <= first)"),
            ("the key behind the last seen", "(j >= stop)", "(j > stop)"),
            ("hidden keys of the first texts", "spans.hidden[texts,", "spans.hidden[: texts.stop - texts.start,"),
            ("hidden keys are seen", "if spans.hidden is not None:", "if False:"),
            ("bounds of the first texts", "else x[texts, :] for", "else x[: texts.stop - texts.start, :] for"),
        ],
        "functional.grouped:_tile": [
            ("not scaled", "* (1 / math.sqrt(d_head))", "* 1.0"),
        ],
        "functional.grouped:_grouped": [
            (
                "query heads by turns",
                "xp.permute_dims(reshape(x, (B, T, kv_heads, n, d // (kv_heads * n))), (0, 2, 3, 1, 4))",
                "xp.permute_dims(reshape(x, (B, T, n, kv_heads, d // (kv_heads * n))), (0, 3, 2, 1, 4))",
            ),
        ],
        "functional.grouped:_keys": [
            ("keys from the first on", "slice(int(first[:, rows].min()), ", "slice(0, "),
            ("last key left out", "int(last[:, rows].max())", "int(last[:, rows].max()) - 1"),
        ],
        "functional.grouped:_blocks": [
            ("whole tiles only", "for r in range(0, T, max(1, t))]", "for r in range(0, T - t + 1, max(1, t))]"),
        ],
    },
    "layers.test_layers": {
        "layers.recompute:Recompute.backward": [
            ("dx always", "self.block.backward(dout, cache, need_dx)", "self.block.backward(dout, cache)"),
        ],
        "layers.basic:RMSNorm.backward": [
            ("dweight always", "self.needs(need_dx)", '("x", "weight")'),
        ],
    },
    "models.test_llama": {
        "layers.recompute:Recompute.forward": [
            ("the generator itself is kept", "copy.deepcopy(run.rng) if run.keep else None", "run.rng"),
        ],
        "layers.recompute:Recompute.backward": [
            ("without dropout", "rng=copy.deepcopy(run.rng)", "rng=None"),
        ],
        "models.llama:LlamaModel._placed": [
            ("segments see each other", "F.causal_spans(T, ids, mask, segments)", "F.causal_spans(T, ids, mask)"),
            (
                "the mask is not read",
                "F.causal_spans(T, ids, mask, segments)",
                "F.causal_spans(T, ids, None, segments)",
            ),
            ("given positions are not read", 'batch.get("position_ids"), None', "None, None"),
        ],
        "models.llama:last_tokens": [
            ("the token before", "xp.max(place, axis=1, keepdims=True)", "xp.max(place, axis=1, keepdims=True) - 1"),
            ("the last place", "if mask is None else xp.where(mask != 0, place, 0 * place)", ""),
        ],
        "models.causal_lm:CausalLM.targets": [
            ("not shifted", "after = labels[:, 1:]", "after = labels[:, :-1]"),
            (
                "the next segment's first token",
                "segments[:, 1:] == segments[:, :-1]",
                "segments[:, 1:] == segments[:, 1:]",
            ),
            (
                "the first label wraps around",
                "none = array_namespace(labels), 0 * labels[:, :1] - 100",
                "none = array_namespace(labels), labels[:, :1]",
            ),
        ],
        "models.causal_lm:CausalLM.count": [
            ("label 0 does not count", "targets >= 0", "targets > 0"),
        ],
        "models.causal_lm:CausalLM._head_loss": [
            ("dh to the first rows", "put_rows(dh, rows, down)", "put_rows(dh, xp.arange(rows.shape[0]), down)"),
            ("the head does not train", "run.keep and head.trains()", "False"),
        ],
        "models.causal_lm:CausalLM._through_head": [
            ("labels of the first chunk", "labels[part]", "labels[: part.stop - part.start]"),
            ("share of a chunk", "share / N", "share / (part.stop - part.start)"),
            ("gradients of the last chunk", "add_grads(grads, more)", "grads.update(more)"),
            ("sum for mean", "loss * (1 / N)", "loss"),
        ],
        "models.causal_lm:CausalLM.forward": [
            ("what is asked of the first row", "asked[:, :, None]", "(0 * asked + asked[:1, :])[:, :, None]"),
        ],
        "models.decoder_block:GroupedAttention.forward": [
            (
                "keys not turned",
                "overwrite=True) for x in (q, k))",
                "overwrite=True) if x is q else x for x in (q, k))",
            ),
        ],
        "models.decoder_block:GroupedAttention.backward": [
            ("keys not turned back", 'd if name == "v_proj" else', 'd if name != "q_proj" else'),
            ("dx of the queries alone", "dx = d if dx is None else _added(dx, d)", "dx = d"),
            ("dk and dv swapped", "(dv, dk, dq)", "(dk, dv, dq)"),
            ("projections run backward for nothing", "if need_dx or child.trains():", "if True:"),
        ],
        "models.decoder_block:GatedMLP.backward": [
            ("dx of the gate alone", "dx = d if dx is None else _added(dx, d)", "dx = d"),
            ("dgate and dup swapped", "dgate, dup = swiglu", "dup, dgate = swiglu"),
            ("projections run backward for nothing", "if need_dx or self.children[name].trains():", "if True:"),
        ],
        "models.decoder_block:DecoderBlock.forward": [
            ("no residual around attention", "u += x", "pass"),
            ("no residual around the MLP", "y += u", "pass"),
            ("the second norm before attention", "n, norm1_cache = norm1(x, run)", "n, norm1_cache = norm2(x, run)"),
            ("x written to", "u += x", "x += u; u = x"),
        ],
        "models.decoder_block:DecoderBlock._half": [
            ("no gradient of the residual", "_added(dx, dout) if need_dx", "dx if need_dx"),
            (
                "the part below runs for nothing",
                "part_layer.backward(dout, part_cache, through)",
                "part_layer.backward(dout, part_cache, True)",
            ),
        ],
        "models.decoder_block:DecoderBlock.backward": [
            ("the first norm is forgotten", 'self.children["input_layernorm"].trains() or ', ""),
        ],
        "models.llama:LlamaModel.backward": [
            ("always down to the embedding", "layers_cache, embed.trains())", "layers_cache, True)"),
        ],
        "adapters.inject:select": [
            ("the output layer too", "(*model.head_modules, *model.output_modules)", "model.head_modules"),
        ],
        "layers.quantized:quantizable": [
            ("the output layer too", "(*model.head_modules, *model.output_modules)", "model.head_modules"),
        ],
    },
    "models.test_kv_cache": {
        "models.kv_cache:KVCache.extend": [
            (
                "one place too far",
                "held[row, n : n + T, :] = new[row, ...]",
                "held[row, n + 1 : n + T + 1, :] = new[row, ...]",
            ),
            (
                "keys for values",
                "tuple(held[:, :longest, :] for held in self._held[layer])",
                "(self._held[layer][0][:, :longest, :],) * 2",
            ),
            ("memory not cleared", "held[...] = 0", "held[...] = np.nan"),
        ],
        "models.kv_cache:KVCache.tokens": [
            ("padding counts", "int(n) for n in", "T for n in"),
            ("no look at the room", "> self.capacity", "> 1 << 30"),
            ("room for one too few", "> self.capacity", ">= self.capacity"),
            ("padding in front passes", "real[:, 1:] & ~real[:, :-1]", "~real[:, 1:] & ~real[:, 1:] & real[:, 1:]"),
        ],
        "models.kv_cache:KVCache.take": [
            ("lengths of the first rows", "self.lengths[rows].copy()", "self.lengths[: len(rows)].copy()"),
            (
                "the rows in their old order",
                "for row in rows]) for x in pair",
                "for row in sorted(rows)]) for x in pair",
            ),
            ("lengths shared", "self.lengths[rows].copy()", "self.lengths"),
        ],
        "models.llama:LlamaModel._placed": [
            (
                "cached positions one too far",
                "at = asarray_like(run.kv.lengths, ids)[:, None]",
                "at = 1 + asarray_like(run.kv.lengths, ids)[:, None]",
            ),
            ("cached queries see one key too few", "F.Spans(0 * at, at + 1)", "F.Spans(0 * at, at)"),
        ],
        "models.llama:LlamaModel.forward": [
            ("lengths do not grow", "run.kv.lengths = run.kv.lengths + counts", "pass"),
            (
                "lengths grow by the padding too",
                "run.kv.lengths + counts",
                'run.kv.lengths + batch["input_ids"].shape[1]',
            ),
        ],
        "models.decoder_block:GroupedAttention.forward": [
            (
                "cached before it is turned",
                "run.kv.extend(self, k, v)",
                "run.kv.extend(self, rotary_backward(k, *run.angles), v)",
            ),
        ],
    },
    "models.test_sampling": {
        "models.sampling:Sampling.penalised": [
            (
                "positive logits grow",
                "own / self.repetition_penalty, own * self.repetition_penalty",
                "own * self.repetition_penalty, own / self.repetition_penalty",
            ),
            ("negative ones divided too", "own * self.repetition_penalty)", "own / self.repetition_penalty)"),
            ("logits written to", "np.unique(seen), logits.copy()", "np.unique(seen), logits"),
        ],
        "models.sampling:Sampling.left": [
            ("top-k: one too many", "order[: self.top_k]", "order[: self.top_k + 1]"),
            ("top-k: one too few", "order[: self.top_k]", "order[: max(1, self.top_k - 1)]"),
            (
                "top-p: without the one that reaches it",
                "np.cumsum(share) - share, self.top_p",
                "np.cumsum(share), self.top_p",
            ),
            ("top-p: one more", "self.top_p)]", "self.top_p) + 1]"),
            ("min-p: of all, not of the largest", "self.min_p * share[0]", "self.min_p"),
            ("min-p: equals left out", "share >= self", "share > self"),
            ("temperature multiplies", "/ self.temperature", "* self.temperature"),
            ("least probable first", "np.argsort(-logits", "np.argsort(logits"),
            ("not normalised", "share /= share.sum()", "pass"),
            ("not shifted", "- logits[order[0]])", ")"),
            (
                "of equals the last first",
                'np.argsort(-logits, kind="stable")',
                'np.argsort(logits, kind="stable")[::-1]',
            ),
        ],
        "models.sampling:Sampling.choose": [
            ("drawn though the temperature is 0", "if self.temperature == 0:", "if False:"),
            ("a draw beyond what is left", "rng.random() * ends[-1]", "rng.random()"),
            ("NaN is chosen", "if not np.isfinite(", "if False and not np.isfinite("),
        ],
    },
    "models.test_generate": {
        "models.generate:continuations": [
            ("a stop token does not end", "found[row] not in stop and row not in ended", "row not in ended"),
            ("rows that were ended go on", "found[row] not in stop and row not in ended", "found[row] not in stop"),
            ("the cache of the first rows", "cache.take(alive)", "cache.take(list(range(len(alive))))"),
            ("rows by their new numbers", "[rows[i] for i in alive]", "alive"),
            ("one stream for all rows", "(rngs, row) for row in", "(rngs, 0) for row in"),
            (
                "the token before is read",
                "fresh = [[found[row]] for row in rows]",
                "fresh = [[texts[row][-2]] for row in rows]",
            ),
            (
                "room for a token too few",
                "max(map(len, texts)) + max_new_tokens)",
                "max(map(len, texts)) + max_new_tokens - 2)",
            ),
        ],
        "models.generate:_right_padded": [
            ("padding is read", "mask[row, : len(text)] = text, 1", "mask[row, :] = text, 1"),
        ],
        "models.generate:_checked": [
            ("tokens as many as there are words", "<= max(text) < words", "<= max(text) <= words"),
            ("room for a token more", "> (most := model.sizes.longest)", "> 1 + (most := model.sizes.longest)"),
        ],
    },
    "models.test_gguf_llama": {
        "models.gguf_llama:unpermuted": [
            (
                "as the file has them",
                "np.swapaxes(W.reshape(heads, half, 2, -1), 1, 2)",
                "W.reshape(heads, half, 2, -1)",
            ),
            ("permuted once more", "W.reshape(heads, half, 2, -1)", "W.reshape(heads, 2, half, -1)"),
        ],
        "models.gguf_llama:turned_heads": [
            ("heads of queries for keys", 'config["num_key_value_heads"]}', 'config["num_attention_heads"]}'),
        ],
        "models.gguf_llama:llama_of_gguf": [
            ("always tied", '"output.weight" not in tensors', "True"),
            ("shapes pass", "if tensor.shape != expected[name]:", "if False:"),
            ("a missing tensor passes", "if missing := [name", "if False and [name"),
        ],
        "models.gguf_llama:_shortest": [
            ("with its rounding", "float(str(np.float32(x)))", "float(x)"),
        ],
    },
    "quantization.test_formats": {
        "quantization.formats:_int4": [
            ("scaled to 8", "np.float32(LARGEST)", "np.float32(8)"),
        ],
        "quantization.formats:_nf4": [
            ("largest without its sign", "np.max(np.abs(blocks), axis=1)", "np.max(blocks, axis=1)"),
        ],
        "quantization.blockwise:pack": [
            ("halves swapped", "codes[0::2] | (codes[1::2] << 4)", "codes[1::2] | (codes[0::2] << 4)"),
        ],
        "quantization.blockwise:in_blocks": [
            ("column after column", "W.reshape(-1)", 'W.reshape(-1, order="F")'),
        ],
        "quantization.blockwise:_scaled_in_place": [
            ("minimum left out", "rows += minimum[:, None]", "pass"),
        ],
        "quantization.double_quant:quantize_scales": [
            ("mean not taken off", "= scale - mean", "= scale"),
            (
                "one step for all groups",
                "np.max(np.abs(groups), axis=1)",
                "np.broadcast_to(np.max(np.abs(groups)), len(groups))",
            ),
        ],
    },
    "quantization.test_ggml_blocks": {
        "quantization.ggml_blocks:_halves": [
            (
                "halves by turns",
                "np.concatenate([qs & 15, qs >> 4], axis=1)",
                "np.stack([qs & 15, qs >> 4], axis=-1).reshape(len(qs), -1)",
            ),
        ],
        "quantization.ggml_blocks:_q4_0": [
            ("not centred", '.astype("f4") - 8', '.astype("f4")'),
        ],
        "quantization.ggml_blocks:_q4_1": [
            ("minimum left out", " + _half(raw, 2)", ""),
        ],
        "quantization.ggml_blocks:_q8_0": [
            ("without a sign", '.view("i1")', ""),
        ],
        "quantization.ggml_blocks:_q4_k": [
            ("minimum added", '.astype("f4") - (dmin', '.astype("f4") + (dmin'),
            ("high bits of the scales left out", " | ((low >> 2) & 48)", ""),
        ],
        "quantization.ggml_blocks:_q6_k": [
            ("not centred", '.astype("f4") - 32', '.astype("f4")'),
            ("two bits left out", "low | high << 4", "low"),
        ],
        "quantization.ggml_blocks:_bf16": [
            ("as float16", '(np.ascontiguousarray(raw).view("<u2").astype("u4") << 16).view("f4")', "_f16(raw)"),
        ],
        "quantization.ggml_blocks:quantize_blocks": [
            ("to even", "np.sign(q) * np.floor(np.abs(q) + np.float32(0.5))", "np.rint(q)"),
            (
                "-8 for the largest magnitude, without its sign",
                "largest / np.float32(-8)",
                "np.abs(largest) / np.float32(-8)",
            ),
            ("cut, not rounded", "scale) + np.float32(0.5), 0, 15)", "scale), 0, 15)"),
        ],
    },
    "quantization.test_loftq": {
        "quantization.loftq:loftq": [
            ("the update added to W", "quantise(W - update", "quantise(W + update"),
            ("s forgotten in the root", "np.sqrt(S / scaling)", "np.sqrt(S)"),
            ("the last round, not the best", "if best is None or errors[-1] < best[0]:", "if True:"),
            ("s in the update forgotten", "np.float32(scaling) * (", "1 * ("),
        ],
    },
    "files.test_gguf": {
        "files.gguf:_placed": [
            ("a gap passes", "if base + offset != aligned(end):", "if base + offset < end:"),
            ("an end behind the file passes", "if end > walk.size:", "if False:"),
            ("bytes behind the last tensor pass", "walk.size > aligned(end)", "False"),
        ],
        "files.gguf:_Walk.bytes": [
            ("more than the file has", "if n > self.size - self.at:", "if False:"),
        ],
        "files.gguf:_Walk.name": [
            ("twice passes", "if name in seen:", "if False:"),
        ],
        "files.gguf:_entry": [
            ("columns first", "tuple(reversed(sides))", "tuple(sides)"),
            (
                "a part of a block passes",
                "if sides[0] % (whole := BLOCKS[kind].weights):",
                "if (whole := BLOCKS[kind].weights) < 0:",
            ),
        ],
        "files.gguf:GGUFTensor.raw": [
            ("another file by now", "if not same or count", "if count"),
        ],
        "files.gguf:GGUFTensor.read": [
            ("NaN passes", 'check_finite(array, f"{self.path}: tensor {self.name}")', "pass"),
        ],
    },
    "files.test_archived": {
        "files.archived:_check": [
            ("any size", "if size > SIZE or total > TOTAL:", "if False:"),
            ("any sum of sizes", " or total > TOTAL", ""),
        ],
        "files.archived:_of_tar": [
            ("links are read", "if info.isreg() and not", "if not"),
            ("any length", "passed > 4 * TOTAL", "False"),
        ],
    },
    "data.test_chat": {
        "data.rendering:turns": [
            ("the turn before", "messages[: i + 1]", "messages[:i]"),
            ("without the prompt for it", "messages[:i], names, prompt=True", "messages[:i], names"),
            ("what the user says too", 'if message["role"] != "assistant":', 'if message["role"] == "system":'),
            ("written otherwise later", "and whole.startswith(after)", ""),
        ],
        "data.rendering:learned_end": [
            ("without the end mark", "len(kept) if not", "before.__len__() + len(content) if not"),
            ("with the blanks behind it", "len(kept) if not", "len(after) if not"),
        ],
        "data.rendering:rendered": [
            ("no prompt for the answer", '"add_generation_prompt": prompt', '"add_generation_prompt": False'),
            ("special tokens without names", "**names, ", ""),
            ("any length", "if length > LONGEST:", "if False:"),
        ],
        "data.chat:check_chat": [
            ("any role", 'if (role := message["role"]) not in ROLES:', 'if (role := message["role"]) is None:'),
            (
                "any message may be blank",
                'if not (role == "system" and message["content"] == ""):',
                'if message["content"] != "":',
            ),
        ],
        "data.chat:ChatTemplate._render": [
            (
                "answers of others",
                "for place, answer in zip(where, answers",
                "for place, answer in zip(where[1:], answers",
            ),
        ],
    },
    "data.test_completions": {
        "data.completions:Completion.learned": [
            ("the prompt too", "((len(self.prompt), len(whole)),)", "((0, len(whole)),)"),
            ("from the second character on", "((len(self.prompt), ", "((len(self.prompt) + 1, "),
        ],
        "data.completions:Chat.source.fget": [
            ("all but the last word", "self.messages[:last]", "self.messages[: last and last + 1]"),
        ],
        "data.completions:learned": [
            (
                "spans of another chat",
                "own = dict(zip(chats, found, strict=True))",
                "own = dict(zip(chats, found[::-1], strict=True))",
            ),
            ("special tokens around a chat", "special=False, end=False", "special=True, end=False"),
            ("an end behind a chat's end", "special=False, end=False", "special=False, end=True"),
        ],
        "data.sequences:_tokens": [
            (
                "a token that ends in the span",
                "(start >= first) & (start < end)",
                "(start >= first - 1) & (start < end)",
            ),
            ("a token too many", "(start < end)", "(start <= end)"),
            ("special tokens are learned", "own & (start", "(start"),
            ("the end twice", "if not len(ids) or ids[-1] != end_id:", "if True:"),
            ("the end is not learned", "labels[-1] = end_id", "labels[-1] = IGNORED"),
            ("the first token is learned", "labels[:1] = IGNORED", "pass"),
        ],
        "data.sequences:Sequences.rows": [
            ("padding is attended to", 'batch["attention_mask"][line, own] = 1', 'batch["attention_mask"][line] = 1'),
            (
                "labels of the padding count",
                "np.full((len(rows), T), IGNORED, np.int64)",
                "np.zeros((len(rows), T), np.int64)",
            ),
        ],
    },
    "data.test_packing": {
        "data.packing:pack": [
            ("shortest first", "np.argsort(-lengths", "np.argsort(lengths"),
            (
                "first row with room",
                "bisect.bisect_left(room, length)",
                "len(room) - 1 if room and room[-1] >= length else len(room)",
            ),
            ("one token over", "bisect.bisect_left(room, length)", "bisect.bisect_left(room, length - 1)"),
            ("one token left unused", "bisect.bisect_left(room, length)", "bisect.bisect_right(room, length)"),
        ],
        "data.packing:Packed.rows": [
            ("segments from 0", "start=1", "start=0"),
            ("positions go on", "np.arange(len(ids)), segment", "np.arange(own[1].start, own[1].stop), segment"),
            ("one segment", "np.arange(len(ids)), segment", "np.arange(len(ids)), 1"),
            ("labels of padding", "np.full(shape, IGNORED, np.int64)", "np.zeros(shape, np.int64)"),
        ],
        "data.packing:Packed.fingerprint": [
            ("which row is forgotten", ', "sizes": np.array([len(own) for own in self.packed])', ""),
        ],
    },
    "data.test_corpora": {
        "data.corpora:Corpus._divided": [
            (
                "the sides swapped",
                "if out is side] for side in (False, True)]\n    parts",
                "if out is not side] for side in (False, True)]\n    parts",
            ),
        ],
        "data.corpora:passages": [
            ("blank lines do not count", "+ len(paragraph) + 2 > most", "+ len(paragraph) > most"),
            ("glued together", '("\\n\\n" if pieces[-1] else "")', '""'),
        ],
        "data.corpora:scenes": [
            ("what stands before the first heading", "starts = [0, *", "starts = [*"),
        ],
        "data.corpora:messages": [
            (
                "the last translation",
                "pairs.setdefault(source, (where, translation))",
                "pairs[source] = where, translation",
            ),
            ("what is not translated", "if source != translation:", "if True:"),
        ],
        "data.corpora:_entries": [
            ("doubtful ones", "entry.fuzzy or ", ""),
            ("obsolete ones", "entry.obsolete or ", ""),
        ],
        "data.corpora:snippets": [
            ("a sentence by itself", 'cells[0].split("_")[0] if sentences else cells[2]', "cells[2]"),
        ],
    },
    "data.test_gguf_tokenizer": {
        "data.gguf_tokenizer:gguf_tokenizer": [
            ("digits together", "individual_digits=True", "individual_digits=False"),
            ("a blank in front", "add_prefix_space=False", "add_prefix_space=True"),
            ("no special tokens", "((CONTROL, True), (USER_DEFINED, False))", "((USER_DEFINED, False),)"),
        ],
        "data.gguf_tokenizer:_lists": [
            ("a token twice passes", "len(known) < len(tokens) or", ""),
            ("a merge of what is none passes", 'not {*pair, "".join(pair)} <= known', "False"),
        ],
    },
    "tasks.test_language": {
        "tasks.measures:evaluate": [
            (
                "mean over batches",
                "n * loss for n, loss, _ in found",
                "loss * counted / len(found) for n, loss, _ in found",
            ),
            ("2 to the loss", "math.exp(loss)", "2**loss"),
            ("batches without labels too", "if n else (0, 0.0, 0.0)", ""),
        ],
        "tasks.language:LanguageModelling.training": [
            ("never packed", "if pack else sequences", "if False else sequences"),
        ],
    },
    "tasks.test_generation": {
        "tasks.generation:_Answer.add": [
            ("a stop text within one token only", "self.held += self.decoder", "self.held = self.decoder"),
            ("the last stop text counts", "self.held[: min(places)]", "self.held[: max(places)]"),
            ("with the stop text", "self.held[: min(places)], True", "self.held, True"),
            ("nothing is held back", "default=0)\n", "default=0) * 0\n"),
            ("one character too many is told", "len(self.held) - begun", "len(self.held) - max(0, begun - 1)"),
            ("whole stop texts only are held back", "range(1, len(text))", "range(len(text), len(text) + 1)"),
            ("what is held is told again", "self.held = self.held[len(told) :]", "pass"),
            ("what was held is lost at the end", 'text, self.held = self.held, ""', 'text = ""'),
        ],
        "tasks.generation:stream": [
            ("a token too few", "max_new_tokens - 1", "max_new_tokens - 2"),
            ("held back for ever", "text += answers[row].held", "pass"),
            ("a stop text does not end the row", "stopped.add(row)", "pass"),
            ("always the length", '"stop" if ended else', '"length" if ended and not left else "stop" if ended else'),
        ],
        "tasks.generation:tokens_of": [
            ("special tokens twice", "[text], add_special_tokens=False", "[text]"),
            ("never as a chat", "if not chat:", "if True:"),
            ("raw as a chat, too", "if not chat:", "if False:"),
            ("no turn of the assistant begins", "add_generation_prompt=True", "add_generation_prompt=False"),
        ],
    },
    "tasks.test_prompts": {
        "tasks.generation:tokens_of": [
            ("an adapter of plain texts prompted as a chat", "if about.chats is None else about.chats", ""),
        ],
    },
    "tasks.test_decoders": {
        "adapters.peft_folder:base_fingerprint": [
            ("codes count for nothing", "not layer.dense", "False"),
        ],
        "models.decoder_folder:load_weights": [
            ("all in float32", "hold = BASE_DTYPES[base_dtype]", "hold = None"),
        ],
    },
    "adapters.test_lora": {
        "adapters.selection:_blocks": [
            ("the last name too", "parts[p][2:-1]", "parts[p][2:]"),
            ("from the first name on", "parts[p][2:-1]", "parts[p][:-1]"),
        ],
        "adapters.selection:_is_inside": [
            ("by the end of a name", 'f".{module}." in f".{path}."', 'f"{module}." in f".{path}."'),
        ],
        "adapters.selection:select": [
            ("an unknown name passes", "if not any(matched(path, name) for path in [*paths, *others]):", "if False:"),
            ("nothing chosen passes", "    if not chosen:\n", "    if not chosen and not meant and False:\n"),
            ("all excluded passes as nothing", "if not chosen and meant:", "if False:"),
            (
                "a layer that is no linear one passes",
                "if unfit := [path for path in chosen if path in others]:",
                "if unfit := ():",
            ),
            (
                "a target in the middle of what is saved passes",
                "if any(is_saved(path, module) for module in config.modules_to_save)]:",
                "if False]:",
            ),
        ],
        "adapters.config:AdapterConfig._values": [
            ("a full path is forgotten", "patterns.get(p, default)", "default"),
        ],
        "adapters.config:AdapterConfig.doubts": [
            ("a full path is told of", " or key in chosen", ""),
        ],
    },
    "adapters.test_patterns": {
        "adapters.patterns:_here": [
            ("whatever the case", "re.compile(expression)", "re.compile(expression, re.IGNORECASE)"),
            ("match always", "re.compile(expression), method)", "re.compile(expression), 'match')"),
            ("the time is not looked at", "if time.monotonic() > deadline:", "if False:"),
        ],
        "adapters.patterns:_in_a_process": [
            ("match always", "CHILD]", "CHILD.replace('method)', '\"match\")')]"),
            ("whatever the case", "CHILD]", "CHILD.replace('(expression)', '(expression, re.IGNORECASE)')]"),
            ("answers of others", "zip(paths, found, strict=True)", "zip(paths[::-1], found, strict=True)"),
        ],
        "adapters.patterns:_is_plain": [
            ("one that looks ahead", "PLAIN.fullmatch(pattern)", "PLAIN.fullmatch(pattern.replace('(?=', '(?:'))"),
            ("four repeats", "<= 3 and", "<= 4 and"),
            ("of any length", "len(pattern) <= 200 and ", ""),
        ],
        "adapters.patterns:_matches": [
            ("the wrong one's answer", "next(answers) for i", "[*answers][-1] for i"),
        ],
    },
    "adapters.test_peft_folder": {
        "adapters.peft_folder:_contents": [
            ("a base layer under its plain name", "if path in chosen else name", "if False else name"),
        ],
        "adapters.inject:_random_head": [
            ("a trained head is told of", '"trained", True):', '"trained", True) and False:'),
            ("a head that trains is told of", ' if not config.trains_in_full(f"{m}.weight", chosen)', ""),
        ],
    },
    "adapters.test_methods": {
        "adapters.base:Adapter.merge": [
            ("the bias of the base", "self.effective_bias)", "base.bias)"),
        ],
        "adapters.base:Adapter.forward": [
            ("the bias as it is", "self.effective_bias)[0]", "self.bias)[0]"),
        ],
        "adapters.base:Adapter.effective_bias.fget": [
            ("scaled twice once it is merged", "b is None or self.merged or", "b is None or"),
        ],
        "adapters.base:Adapter.grads_of_weight": [
            ("nothing by way of the bias", "grads = add_grads(dict(grads), more)", "pass"),
            ("db of the effective bias", "more, dbias = self", "more, _ = self"),
        ],
        "models.attention:SelfAttention.forward": [
            ("the bias as it is", "value.effective_bias", "value.bias"),
        ],
    },
}
