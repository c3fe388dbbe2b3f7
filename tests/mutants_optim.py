"""Slips in the optimizers that are made for LoRA's factors; see `mutants`."""

OPTIM = {
    "training.test_factors": {
        "training.factors:pairs": [
            ("half a pair will do", "if len(halves[path]) == 1:", "if False:"),
            ("no pair will do", "if not halves:", "if False:"),
            ("factors of any shape", "and A.shape[0] == B.shape[1]", ""),
            ("of two dtypes", "and A.dtype == B.dtype", ""),
        ],
        "training.factors:gram": [
            ("in its own dtype", "M = xp.astype(M, xp.float64)", "pass"),
        ],
        "training.factors:Spectrum.power": [
            ("no reg", "(self.values + reg)", "self.values"),
        ],
        "training.factors:Spectrum.inverse": [
            ("not inverted", "self.power(-1,", "self.power(1,"),
        ],
        "training.factors:spectra": [
            ("squares below 0", "xp.where(values > 0, values, xp.zeros_like(values))", "values"),
            ("the first of a size for all", "U[i, ...])", "U[0, ...])"),
        ],
        "training.factors:OverFactors.check_rates": [
            ("pairs unchecked", "self.pairs(params)", "pass"),
        ],
        "training.factors:OverFactors.prepare": [
            ("state of what is frozen", "self.moving(params)", "params"),
        ],
        "training.factors:OverFactors.apply": [
            ("scale left out", "scale, alive)", "None, alive)"),
            ("dead steps count", "scale, alive)", "scale, None)"),
            ("the gradients given are overwritten", "dict(grads)", "grads"),
            ("what is frozen moves", "self.moving(params), self.moving(new)", "params, new"),
        ],
        "training.riemannian:Riemannian.directions": [
            (
                "the spectra swapped",
                "BB.inverse(self.reg, g_A) @ g_A, g_B @ AA",
                "AA.inverse(self.reg, g_A) @ g_A, g_B @ BB",
            ),
            ("A as it is", "BB.inverse(self.reg, g_A) @ g_A", "g_A"),
        ],
        "training.lora_fa:LoRAFA.directions": [
            ("not corrected", "g_B @ AA.inverse(self.reg, g_B)", "g_B"),
            ("s, not its square", "self.scaling**2", "self.scaling"),
        ],
        "training.lora_pro:sylvester": [
            ("p_i alone", " + (AA.values[None, :] + reg)", ""),
            (
                "p and q swapped",
                "BB.values[:, None] + reg) + (AA.values[None, :]",
                "BB.values[None, :] + reg) + (AA.values[:, None]",
            ),
            ("not turned back", "BB.U @ inner @ AA.U.T", "inner"),
        ],
        "training.lora_pro:LoRAPro.directions": [
            ("b not projected", "b = b - B @", "b = b - 0 * B @"),
            ("X of the other sign in b", "b - B @ X", "b + B @ X"),
            ("no X", "a + X @ A, b - B @ X", "a, b"),
            ("C of the other sign", "(b - g_B) - (a", "(b - g_B) + (a"),
            ("a not divided by the square of s", "@ g_A) / self.scaling**2", "@ g_A) / self.scaling"),
        ],
        "training.lora_plus:LoRAPlus.__init__": [
            ("A learns faster", '"lora_B": check', '"lora_A": check'),
        ],
    },
    "training.test_muon": {
        "training.muon:orthogonalized": [
            ("not turned back", "return X.T if tall else X", "return X"),
            ("squares underflow", "xp.max(xp.abs(X))", "xp.max(0 * X + 1)"),
            ("no fifth power", " + c * (S @ S)", ""),
        ],
        "training.muon:Muon.apply": [
            ("scale left out", "g * asarray_like(scale, g)", "g"),
            ("no memory", "self.momentum * m + (1 - self.momentum) * g", "g"),
            ("one rate for all", " * self.rate_of(name)", ""),
            ("the smaller side", "max(p.shape)", "min(p.shape)"),
            ("not orthogonal", "orthogonalized(new)", "new"),
            ("dead steps move", "p[...] = moved if alive is None else xp.where(alive, moved, p)", "p[...] = moved"),
            ("dead steps count", "m[...] = new if alive is None else xp.where(alive, new, m)", "m[...] = new"),
            ("decay without the rate", "(1 - rate * self.weight_decay)", "(1 - self.weight_decay)"),
        ],
        "training.muon:Muon.prepare": [
            ("v of factors too", "super().prepare(others)", "super().prepare(params)"),
        ],
        "training.factors:without_factors": [
            ("B is no factor", "not in FACTORS", 'not in ("lora_A",)'),
        ],
    },
    "training.test_rite": {
        "training.rite:RITE.moved": [
            ("scale left out", "g * asarray_like(scale, g)", "g"),
            ("one rate for all", " * self.rate_of(name)", ""),
            ("V not turned", "P @ V @ P.T", "V"),
            ("m not turned", "b1 * (P @ m)", "b1 * m"),
            ("nothing escapes", "b2 * (e + xp.astype(xp.max(xp.abs(before - after)), g.dtype))", "b2 * e"),
            ("V of the gradient as it is", "(h @ h.T)", "(g @ g.T)"),
            ("a sum of squares", "((1 - b2) / g.shape[1])", "(1 - b2)"),
            ("no root", "power(-0.5, self.eps**2, g)", "power(-1, self.eps**2, g)"),
            ("the step not shrunk", "(shrink @ m)", "m"),
            ("V not corrected", " / (1 - b2**t)", ""),
            ("NaN is decomposed", "xp.where(alive, g, xp.zeros_like(g))", "g"),
        ],
        "training.rite:RITE.apply": [
            ("dead steps move", "array if alive is None else xp.where(alive, array, old[slot])", "array"),
        ],
    },
}
