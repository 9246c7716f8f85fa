"""What students write, and the whole sentence that each is told: by the head of the function, then by its body.

Written as a student may, not as `examples/course/exercises` writes the same mistake.
"""

ANSWERS = {
    "layer(a, w, b)": {
        "return F.linear(a, w, b)": "sigma is missing: you return z, and a layer hands on a = sigma(z): look at what you return.",
        "return 1 / (1 + torch.exp(-torch.einsum('rn,mn->rm', a, w)))": "b is missing: look at the line of z = w a + b.",
        "return F.linear(a, w).sigmoid() + b": "b stands outside sigma: it is a part of z, so look at the brackets.",
        "z = torch.matmul(a, w) + b; return z.sigmoid()": (
            "The transpose of w is missing: a is (r, n) and w (m, n), and only a @ w.T joins n to n."
        ),
        "z = torch.mm(w, a) + b; return z.sigmoid()": (
            "w @ a is the formula for one example as a column; here the examples are rows of a: write a @ w.T."
        ),
    },
    "cost(a, y)": {
        "return (a - y).square().sum() / len(a)": "The factor 1/2 is missing: your C is twice the cost.",
        "return F.mse_loss(a, y) / 2": (
            "The mean is taken over the outputs too: add up the outputs of an example, sum(1), before the mean."
        ),
        "return (a - y).norm() ** 2 / 2": (
            "The mean over the batch is missing: you add up the examples, so C would grow with their number."
        ),
        "return (a - y).square().sum(1) / 2": "You return a cost for each example: C is one number, their mean.",
        "return ((a - y).sum(1) / 2).mean().item()": (
            "The square is missing: differences of both signs cancel, so look at the power."
        ),
    },
    "output_error(a, y, z)": {
        "return (a - y) / a.shape[0]": ("sigma'(z) is missing: you return dC/da, and delta is dC/dz, one factor more."),
        "return (y - a) * a * (1 - a) / len(y)": "The sign is wrong: dC/da is a - y, not y - a.",
        "return (a - y) * a * (1 - a)": (
            "The mean over the batch is missing: C is a mean over r examples, so dC/da is (a - y) / r."
        ),
        "s = 1 / (1 + torch.exp(-a)); return (a - y) * s * (1 - s) / len(a)": (
            "sigma' is taken at a instead of z: sigma'(z) is a (1 - a), or sigmoid(z) (1 - sigmoid(z))."
        ),
        "return (a - y) * (a - a**2) / (a.shape[0] * a.shape[1])": (
            "The mean is taken over the outputs too: divide by the number of examples, len(a), alone."
        ),
    },
    "tanh_slope(z)": {
        "return 1 - z * z": "You took z for a: the slope is 1 - a^2 with a = tanh(z).",
        "a = torch.tanh(z); return a - a * a": "That is the sigmoid's rule, a (1 - a): tanh has another, 1 - a^2.",
        "return 1 - z.tanh()": "The square is missing: the slope is 1 - tanh(z)^2.",
        "return z.sinh() / z.cosh()": "That is tanh itself: its slope by z is wanted.",
    },
    "backpropagated_error(delta_above, w_above, z)": {
        "return torch.einsum('rm,mn->rn', delta_above, w_above)": (
            "sigma'(z) is missing: w^T delta is dC/da of this layer, and delta is dC/dz, one factor more."
        ),
        "return torch.matmul(delta_above, w_above.t()) * z.sigmoid()": (
            "A transpose too many: delta is (r, m) and w (m, n), so delta @ w, as rows, is w^T delta."
        ),
        "return w_above.T @ delta_above * z.sigmoid() * (1 - z.sigmoid())": (
            "w^T delta is the formula for one example as a column; here the examples are rows: delta_above @ w_above."
        ),
        "return delta_above @ w_above / (1 + torch.exp(-z))": "You multiply by sigma(z), not by its slope sigma'(z).",
        "a = z.sigmoid(); s = a.sigmoid(); return delta_above @ w_above * (s - s * s)": (
            "sigma' is taken at a instead of z: look at what you pass to it."
        ),
    },
    "all_errors(delta, weights, zs)": {
        """
        deltas = [None] * len(zs)
        deltas[-1] = delta
        for l in range(len(zs) - 2, -1, -1):
            a = zs[l].sigmoid()
            deltas[l] = deltas[l + 1] @ weights[l] * a * (1 - a)
        return deltas
        """: "w is one layer too low: delta^l comes down through w^{l+1}, the weight of the layer above.",
        """
        deltas = [delta]
        for l in [2, 1]:
            a = zs[l].sigmoid()
            deltas = [deltas[0] @ weights[l] * a * (1 - a), *deltas]
        return deltas
        """: "z is one layer too high: delta^l takes sigma' at z^l, the layer's own.",
        """
        deltas = {2: delta}
        for l in (1, 0):
            a = zs[l].sigmoid()
            deltas[l] = deltas[l + 1] @ weights[l + 1].T * a * (1 - a)
        return deltas[0], deltas[1], deltas[2]
        """: "A transpose too many: the weights are square here, so the shapes fit, but it is delta @ w, not delta @ w.T.",
        """
        deltas = [delta]
        for l in (1, 0):
            a = zs[l].sigmoid()
            deltas.append(deltas[-1] @ weights[l + 1] * a * (1 - a))
        return deltas
        """: "Your list begins with the last layer: turn it round, so that deltas[0] is the first layer's.",
        """
        deltas = [delta]
        for l in (1, 0):
            a = zs[l].sigmoid()
            deltas.insert(0, delta @ weights[l + 1] * a * (1 - a))
        return deltas
        """: "Every error is made from the last one: delta^l comes from delta^{l+1}, the one that you have just found.",
        "two = delta @ weights[2]; return [two @ weights[1], two, delta]": (
            "sigma'(z) is missing: each step down multiplies by w and by one sigma'."
        ),
    },
    "gradients(delta, a, w)": {
        "return torch.einsum('rm,rn->nm', delta, a), delta.sum(0), delta @ w": (
            "dC/dw is turned round: a.T @ delta is (n, m), and w is (m, n): delta.T @ a."
        ),
        "r = len(a); return (delta / r).T @ a, delta.sum(0) / r, delta @ w": (
            "The mean is taken twice: delta has the 1/r of the mean already, so add the examples up."
        ),
        "return (delta[:, :, None] * a[:, None]).mean(0), delta.sum(0), delta @ w": (
            "The mean is taken twice in dC/dw: delta has the 1/r of the mean already, so do not divide by r."
        ),
        "return (a.T @ delta).T, delta.mean(0), delta @ w": (
            "The mean is taken twice in dC/db: delta has the 1/r of the mean already, so sum(0), not mean(0)."
        ),
        "return delta.T @ a, delta.clone(), delta @ w": (
            "dC/db is not added up: b is shared by all examples, so sum delta over them, sum(0)."
        ),
        "return delta.T @ a, delta.sum(dim=-1), delta @ w": (
            "dC/db is added up along the wrong axis: axis 0 counts the examples, axis 1 the neurons."
        ),
        "return torch.mm(delta, w), delta.T @ a, delta.sum(0)": "The order is wrong: return dC/dw, dC/db, dC/da.",
    },
    "slope(cost, w, i, j, eps=1e-4)": {
        "v = w.clone(); v[i, j] = w[i, j] + eps; return (cost(v) - cost(w)) / eps": (
            "The difference is one-sided, and wrong by about eps; C(w + eps) - C(w - eps) over 2 eps is wrong by eps^2."
        ),
        "e = torch.zeros_like(w); e[i, j] = eps; return (cost(w + e) - cost(w - e)) / eps": (
            "You divide by eps: from w - eps to w + eps it is 2 eps."
        ),
        "return float(cost(w + eps) - cost(w - eps)) / 2 / eps": (
            "You move all of w at once: only the entry [i, j] moves, the others stay."
        ),
        "e = torch.zeros_like(w); e[i, j] = eps; return (cost(w - e) - cost(w + e)) / 2 / eps": (
            "The sign is wrong: C(w + eps) comes first."
        ),
        "v = w.clone(); v[i, j] += eps; up = cost(v); v[i, j] -= eps; return (up - cost(v)) / (2 * eps)": (
            "After w + eps you go back by eps only, which is w itself: from there to w - eps it is one more eps."
        ),
        "w[i, j] += eps; up = cost(w); w[i, j] -= eps; w[i, j] -= eps; return (up - cost(w)) / (2 * eps)": (
            "Your function changes its argument w, which its caller still needs: make a new tensor instead of writing into w "
            "with -=, += or w[...] =."
        ),
    },
    "momentum_update(w, gradient, v, eta, mu)": {
        "v = v * mu + gradient; return w + v * eta, v": "The sign is wrong: w goes downhill, w - eta v.",
        "new_w = w - eta * v; v = mu * v + gradient; return new_w, v": (
            "The old v moves w: make the new v first, and use that."
        ),
        "v = torch.add(gradient, v, alpha=mu); return w - v, v": "eta is missing: the step is eta v.",
        "v = torch.lerp(gradient, v, mu); return w - eta * v, v": (
            "That is a running mean: here the gradient is added whole, v = mu v + gradient, without 1 - mu."
        ),
        "v = mu * v + eta * gradient; return w - v, v": (
            "eta stands in v: there v gathers gradients, and eta multiplies v when w moves."
        ),
        "v = v + gradient; return w - eta * v, v": "mu is missing: v keeps a part mu of itself.",
        "return w - eta * mu * v - eta * gradient, v": "The new v is not returned: the next step needs it.",
        "v *= mu; v += gradient; return w - eta * v, v": (
            "Your function changes its argument v, which its caller still needs: make a new tensor instead of writing into v "
            "with -=, += or v[...] =."
        ),
    },
    "train_step(w1, w2, x, y, eta)": {
        """
        h = (x @ w1.T).sigmoid()
        out = (h @ w2.T).sigmoid()
        d2 = (out - y) * out * (1 - out) / len(x)
        w2 = w2 - eta * d2.T @ h
        d1 = d2 @ w2 * h * (1 - h)
        w1 = w1 - eta * d1.T @ x
        return w1, w2
        """: "w2 is updated too early: delta1 must come back through the w2 of the forward pass, so find both deltas first.",
        """
        h = (x @ w1.T).sigmoid()
        out = (h @ w2.T).sigmoid()
        d2 = (out - y) * out * (1 - out) / len(x)
        return w1 - eta * (d2 @ w2).T @ x, w2 - eta * d2.T @ h
        """: "sigma' of the hidden layer is missing: look at delta1.",
        """
        h = (x @ w1.T).sigmoid()
        out = (h @ w2.T).sigmoid()
        d2 = (out - y) / len(x)
        d1 = d2 @ w2 * (h - h * h)
        return w1 - eta * d1.T @ x, w2 - eta * d2.T @ h
        """: "sigma' of the output layer is missing: look at delta2.",
        """
        h = (x @ w1.T).sigmoid()
        out = (h @ w2.T).sigmoid()
        d2 = (out - y) * out * (1 - out)
        d1 = d2 @ w2 * (h - h * h)
        return w1 - eta * d1.T @ x, w2 - eta * d2.T @ h
        """: "The mean over the batch is missing: look at the first line of delta2, (a2 - y) / r.",
        """
        h = (x @ w1.T).sigmoid()
        out = (h @ w2.T).sigmoid()
        d2 = (y - out) * out * (1 - out) / len(x)
        d1 = d2 @ w2 * (h - h * h)
        return w1 - eta * d1.T @ x, w2 - eta * d2.T @ h
        """: "The sign is wrong: the weights climb, w + eta dC/dw, and C grows.",
    },
    "softmax_error(z, classes)": {
        "return z.softmax(1) - F.one_hot(classes, 3)": (
            "The mean over the batch is missing: divide p - y by the number of examples."
        ),
        "e = z.exp(); return (e / e.sum(0) - F.one_hot(classes, 3)) / len(z)": (
            "The softmax runs down the batch: each row is one example, and its probabilities sum to 1: dim=1."
        ),
        "return (z.softmax(-1) - classes.unsqueeze(1)) / z.shape[0]": (
            "The classes are subtracted as numbers: class 2 is not twice class 1, so make each a one-hot row y first."
        ),
        "p = z.softmax(1); return (p - F.one_hot(classes)) * (p - p**2) / len(z)": (
            "sigma' is there once too often: with softmax and cross-entropy p (1 - p) has cancelled, and dC/dz is (p - y) / r."
        ),
        "return (F.one_hot(classes) - z.softmax(1)) / len(z)": "The sign is wrong: dC/dz is p - y, not y - p.",
    },
    "silu_slope(z)": {
        "return 1 / (1 + torch.exp(-z))": (
            "Half of the product rule is missing: you hold s = sigmoid(z) and forget that it changes with z, z s (1 - s)."
        ),
        "a = z.sigmoid(); return z * a * (1 - a)": (
            "Half of the product rule is missing: you forget the first factor's slope, which gives s = sigmoid(z)."
        ),
        "a = z.sigmoid(); return a - a * a": "That is the slope of the sigmoid alone: sigma here is z sigmoid(z), a product.",
        "return z.sigmoid() + z * z.sigmoid()": "The slope of s is s (1 - s), and you wrote s: look at the second term.",
    },
    "mended(g, a, w, z)": {
        "d = g * (1 - z.tanh() ** 2); return d.T @ a / len(a), d.sum(0), d @ w.T": (
            "2 of the 3 faults left: dC/dw takes the mean a second time, which delta has in it already; "
            "dC/da has a transpose too many, which fits only because w is square."
        ),
        "d = g * z.sigmoid() * (1 - z.sigmoid()); return d.T @ a, d.sum(0), d @ w": (
            "1 of the 3 faults left: the activation is tanh, and the slope is the sigmoid's (the line of delta)."
        ),
        "d = g / z.cosh() ** 2; return d.T @ a, d.sum(0), d @ w.T": (
            "1 of the 3 faults left: dC/da has a transpose too many, which fits only because w is square."
        ),
        "d = g / z.cosh() ** 2; return d.T @ a / 5, d.sum(0), d @ w": (
            "1 of the 3 faults left: dC/dw takes the mean a second time, which delta has in it already."
        ),
    },
    "other_cost(a, y)": {
        "return (a - y).square().sum() / 2 / len(a)": (
            "That is the quadratic cost: its slope by z has sigma' in it, and the one wanted has not."
        ),
        "return -(y * a.log()).sum() / len(a)": (
            "Half of it is missing: where y is 0 your cost is 0 for every a, so add (1 - y) log(1 - a)."
        ),
        "return (y * a.log() + (1 - y) * (1 - a).log()).sum() / len(a)": (
            "The sign is wrong: a logarithm of a number below 1 is negative, and a cost is not."
        ),
        "return F.binary_cross_entropy(a, y)": (
            "The mean is taken over the outputs too: add up the outputs of an example, sum(1), before the mean."
        ),
        "return F.binary_cross_entropy(a, y, reduction='sum')": (
            "The mean over the batch is missing: you add up the examples."
        ),
    },
}
