"""Random functional Keras models for property tests: valid, varied, small, quick to build, and made
of built-in layers only.

    random_model(7)                                     # a keras.Model, the same each time
    random_model(7, layers=12, kinds=IMAGE_KINDS)       # only these kinds
    random_model(7, without={"Conv2DTranspose", "grouped", "dilated"})

    @given(models(without={"grouped"}))                 # hypothesis: a seed and a size are drawn,
    and it shrinks by size
    def test_something(model): ...

A kind is a layer's class name, or one of STRUCTURES ("shared": an earlier layer is called again;
"nested": a model is a layer; "ops": functions
of keras.ops; "leaf": a tensor in the middle is an output too). A trait is a way in which a
convolution or a pooling can be unusual (TRAITS).
`without` takes both; what has to be left out, because a counter is wrong about it, is said by its
name.
"""
import random
from math import prod

import keras
from hypothesis import strategies
from keras import layers as L

MERGES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")
ANY_KINDS = (  # for tensors of any rank
    "Dense", "EinsumDense", "BatchNormalization", "LayerNormalization", "GroupNormalization",
    "RMSNormalization", "UnitNormalization", "Activation",
    "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "Dropout", "GaussianNoise", "Rescaling",
    "Identity", "Flatten", "Reshape", "Permute",
)
IMAGE_KINDS = (
    "Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "MaxPooling2D",
    "AveragePooling2D", "GlobalMaxPooling2D",
    "GlobalAveragePooling2D", "UpSampling2D", "ZeroPadding2D", "Cropping2D", "SpatialDropout2D",
)
SEQUENCE_KINDS = tuple(kind.replace("2D", "1D") for kind in IMAGE_KINDS)
VOLUME_KINDS = (
    "Conv3D", "Conv3DTranspose", "MaxPooling3D", "AveragePooling3D", "GlobalMaxPooling3D",
    "GlobalAveragePooling3D", "UpSampling3D",
    "ZeroPadding3D", "Cropping3D", "SpatialDropout3D",
)
VECTOR_KINDS = ("RepeatVector",)
STRUCTURES = ("shared", "nested", "ops", "leaf")
KINDS = frozenset(
    (*ANY_KINDS, *IMAGE_KINDS, *SEQUENCE_KINDS, *VOLUME_KINDS, *VECTOR_KINDS, *MERGES, *STRUCTURES)
)
SLOW_KINDS = frozenset((  # not used unless asked for: each takes tens of milliseconds to build
    "SimpleRNN", "LSTM", "GRU", "Bidirectional", "TimeDistributed", "Attention",
    "AdditiveAttention", "MultiHeadAttention", "GroupQueryAttention",
))
TRAITS = frozenset((
    "strided", "dilated", "grouped", "multiplied",  # multiplied: depth_multiplier above 1
    "same", "valid", "causal", "uneven",  # uneven: a kernel, stride or pool that differs by axis
    "transposed_same", "transposed_valid", "activated", "biased", "unbiased",
))
WEIGHTED = ("Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose",
    "Conv2DTranspose", "Conv3DTranspose")
LARGEST = 20 * 20 * 16  # elements of a tensor
LAST = {1: "bc,cd->bd", 2: "blc,cd->bld", 3: "bhwc,cd->bhwd", 4: "bxyzc,cd->bxyzd"}


class _Builder:
    """Makes one model. The rng decides everything; names count from 1, so the same seed gives the
    same model."""

    def __init__(self, rng, kinds, without, initializer):
        self.rng, self.initializer = rng, initializer
        unknown = (set(kinds) | set(without)) - KINDS - SLOW_KINDS - TRAITS
        if unknown:
            raise ValueError(
                f"found {', '.join(sorted(unknown))}: expected names among KINDS, SLOW_KINDS and"
                " TRAITS"
            )
        self.kinds, self.without = set(kinds) - set(without), set(without)
        # calls inside a nested model; the models, so that no other object gets their id
        self.inside, self.alive = {}, []
        self.calls, self.numbers, self.pool, self.leaves, self.outputs, self.made = (
            0,
            {},
            [],
            [],
            [],
            [],
        )

    # ------------------------------------------------------------ small decisions

    def may(self, trait, chance):
        return trait not in self.without and self.rng.random() < chance

    def name(self, kind):
        self.numbers[kind] = self.numbers.get(kind, 0) + 1
        return f"{kind}_{self.numbers[kind]}"

    def each(self, axes, low, highs):
        "A number, or one for each axis."
        if axes > 1 and self.may("uneven", 0.25):
            return tuple(self.rng.randint(low, high) for high in highs)
        return (self.rng.randint(low, min(highs)),) * axes

    def padding(self, prefix=""):
        choices = [
            padding
            for padding in ("same", "valid")
            if prefix + padding not in self.without and padding not in self.without
        ]
        return self.rng.choice(choices or ["valid"])

    def window(self, sides, largest=5, stride_chance=0.35):
        "Kernel size, strides and padding that fit."
        padding, axes = self.padding(), len(sides)
        highs = [largest if padding == "same" else min(largest, side) for side in sides]
        size = self.each(axes, 1, highs)
        strides = (
            self.each(axes, 1, [3] * axes) if self.may("strided", stride_chance) else (1,) * axes
        )
        return size, strides, padding

    def weights(self, kind, kernels=("kernel",)):
        "Zeros cost no random numbers; and what most weighted layers have in common."
        options = {f"{kernel}_initializer": self.initializer for kernel in kernels}
        options["use_bias"] = not self.may("unbiased", 0.4 if "biased" not in self.without else 1)
        if self.may("activated", 0.4):
            options["activation"] = self.rng.choice(
                ("relu", "sigmoid", "tanh", "elu", "gelu", "silu", "softplus")
            )
        return options

    # ------------------------------------------------------------ layers

    def call(self, layer, tensor, remember=True):
        "Call a layer; the result joins the pool, and what it read is no leaf any more."
        output = layer(tensor)
        used = tensor if isinstance(tensor, list) else [tensor]
        self.calls += self.inside.get(id(layer), 1)
        self.leaves = [leaf for leaf in self.leaves if not any(leaf is one for one in used)] + [
            output
        ]
        self.pool.append(output)
        if remember and not isinstance(tensor, list):
            self.made.append((layer, tuple(tensor.shape)))
        return output

    def layer(self, kind, shape):
        """A layer of the kind that takes a tensor of this shape (without the batch), or None if
        there is none."""
        *sides, channels = shape
        axes, rng = len(sides), self.rng
        cls, name = getattr(L, kind, None), None
        if cls is None:  # an older Keras
            return None
        options = self.options(kind, cls, sides, channels, axes, rng)
        if options is None:
            return None
        name = self.name(kind)
        return cls(**options, name=name)

    def options(self, kind, cls, sides, channels, axes, rng):
        if kind.startswith("Conv") and kind.endswith("Transpose"):
            return self.transposed(kind, sides)
        if kind.startswith("Conv"):
            return self.convolution(kind, sides, channels)
        if kind.startswith(("Depthwise", "Separable")):
            return self.depthwise(kind, sides)
        if kind.startswith(("MaxPooling", "AveragePooling")):
            size, strides, padding = self.window(sides, 3)
            return {
                "pool_size": size,
                "strides": (
                    None
                    if strides == (1,) * axes and padding == "valid" and rng.random() < 0.5
                    else strides
                ),
                "padding": padding,
            }
        if kind.startswith(("Global", "Spatial", "GaussianNoise", "Dropout")):
            return (
                {"keepdims": rng.random() < 0.3}
                if kind.startswith("Global")
                else (
                    {"stddev": 0.1, "seed": 1}
                    if kind == "GaussianNoise"
                    else {"rate": 0.2, "seed": 1}
                )
            )
        if kind.startswith(("UpSampling", "ZeroPadding", "Cropping")):
            return self.resizing(kind, sides, channels, axes)
        if kind == "Dense":
            return {"units": rng.randint(1, 8), **self.weights(kind)}
        if kind == "EinsumDense":
            units = rng.randint(1, 8)
            return {
                "equation": LAST[axes + 1],
                "output_shape": (*sides, units),
                "bias_axes": rng.choice(("d", None)),
                "kernel_initializer": self.initializer,
            }
        if kind == "GroupNormalization":
            return {"groups": rng.choice([n for n in range(1, channels + 1) if channels % n == 0])}
        if kind in ("BatchNormalization", "LayerNormalization"):
            return {"center": rng.random() < 0.7, "scale": rng.random() < 0.7}
        return self.plain(kind, sides, channels, rng)

    def plain(self, kind, sides, channels, rng):
        if kind == "Activation":
            return {"activation": rng.choice(("relu", "sigmoid", "tanh", "softmax", "elu", "selu",
                "gelu", "silu", "softplus", "hard_sigmoid", "linear"))}
        if kind == "ReLU":
            return {"max_value": rng.choice((None, 6.0)), "negative_slope": rng.choice((0.0, 0.1))}
        if kind == "Rescaling":
            return {"scale": 0.5, "offset": rng.choice((0.0, 1.0))}
        if kind == "Flatten":
            return {} if sides else None
        if kind == "Reshape":
            return {"target_shape": self.other_shape((*sides, channels))}
        if kind == "Permute":
            if not sides:
                return None
            dims = list(range(1, len(sides) + 2))
            rng.shuffle(dims)
            return {"dims": tuple(dims)}
        if kind == "RepeatVector":
            return None if sides else {"n": rng.randint(2, 12)}
        return {}

    def other_shape(self, shape):
        "Another shape with as many elements and one to four axes."
        left, target = prod(shape), []
        for _ in range(self.rng.randint(0, 3)):
            divisors = [n for n in range(1, min(left, 20) + 1) if left % n == 0]
            target.append(self.rng.choice(divisors))
            left //= target[-1]
        return (*target, left)

    def convolution(self, kind, sides, channels):
        size, strides, padding = self.window(sides)
        options, rng, axes = self.weights(kind), self.rng, len(sides)
        filters, groups = rng.randint(1, 8), 1
        if self.may("grouped", 0.3):
            groups = rng.choice([n for n in range(1, channels + 1) if channels % n == 0])
            filters = groups * rng.randint(1, max(1, 8 // groups))
        dilation = (1,) * axes
        if self.may("dilated", 0.3):
            strides = (1,) * axes
            highs = [
                3 if padding == "same" or k == 1 else max(1, min(3, (side - 1) // (k - 1)))
                for side, k in zip(sides, size)
            ]
            dilation = self.each(axes, 1, highs)
        if kind == "Conv1D" and self.may("causal", 0.2):
            padding = "causal"
        return {"filters": filters, "kernel_size": size, "strides": strides, "padding": padding,
            "dilation_rate": dilation, "groups": groups, **options}

    def transposed(self, kind, sides):
        rng, axes = self.rng, len(sides)
        strides = self.each(axes, 1, [2] * axes) if self.may("strided", 0.6) else (1,) * axes
        size, filters = self.each(axes, 1, [3 if axes == 3 else 4] * axes), rng.randint(1, 6)
        if filters * prod(side * stride + 4 for side, stride in zip(sides, strides)) > LARGEST:
            return None
        padding = self.padding("transposed_")
        return {
            "filters": filters,
            "kernel_size": size,
            "strides": strides,
            "padding": padding,
            **self.weights(kind),
        }

    def depthwise(self, kind, sides):
        size, strides, padding = self.window(sides, 4)
        rng, axes = self.rng, len(sides)
        # TensorFlow wants equal strides
        size, strides = (size[0],) * axes if padding == "same" else (min(size),) * axes, (
            strides[0],
        ) * axes
        dilation = 1
        if self.may("dilated", 0.2):
            strides, dilation = (1,) * axes, (
                2 if padding == "same" or (size[0] - 1) * 2 < min(sides) else 1
            )
        separable = kind.startswith("Separable")
        options = self.weights(kind, ("depthwise", "pointwise") if separable else ("depthwise",))
        if separable:
            options["filters"] = rng.randint(1, 8)
        options["depth_multiplier"] = 2 if self.may("multiplied", 0.3) else 1
        return {
            "kernel_size": size,
            "strides": strides,
            "padding": padding,
            "dilation_rate": dilation,
            **options,
        }

    def resizing(self, kind, sides, channels, axes):
        rng = self.rng
        if kind.startswith("UpSampling"):
            size = self.each(axes, 1, [2] * axes)
            if channels * prod(sides) * prod(size) > LARGEST:
                return None
            return {"size": size[0] if axes == 1 else size}
        if kind.startswith("ZeroPadding"):
            amounts = tuple((rng.randint(0, 2), rng.randint(0, 2)) for _ in sides)
            return {"padding": amounts[0] if axes == 1 else amounts}
        amounts = tuple((rng.randint(0, min(2, side - 1)), 0) for side in sides)
        return {"cropping": amounts[0] if axes == 1 else amounts}

    def slow(self, kind, shape):
        "Recurrent layers and attention, on sequences."
        if len(shape) != 2:
            return None
        rng, name = self.rng, self.name(kind)
        start = {"kernel_initializer": self.initializer}
        if kind in ("SimpleRNN", "LSTM", "GRU"):
            options = {
                "recurrent_initializer": self.initializer,
                "return_sequences": rng.random() < 0.6,
                "use_bias": rng.random() < 0.7,
                **start,
            }
            return getattr(L, kind)(rng.randint(1, 6), name=name, **options)
        if kind == "Bidirectional":
            inner = rng.choice((L.SimpleRNN, L.LSTM, L.GRU))(
                rng.randint(1, 6),
                recurrent_initializer=self.initializer,
                **start,
                name=f"{name}_inner",
            )
            return L.Bidirectional(inner, merge_mode=rng.choice(("concat", "sum")), name=name)
        if kind == "TimeDistributed":
            return L.TimeDistributed(
                L.Dense(rng.randint(1, 6), **start, name=f"{name}_inner"), name=name
            )
        return None

    # ------------------------------------------------------------ one more

    def kinds_for(self, rank):
        by_rank = {1: VECTOR_KINDS, 2: SEQUENCE_KINDS, 3: IMAGE_KINDS, 4: VOLUME_KINDS}[rank]
        return [kind for kind in (*ANY_KINDS, *by_rank, *by_rank) if kind in self.kinds]

    def choose(self):
        "A tensor to go on from: mostly one that nobody reads yet."
        return (
            self.rng.choice(self.leaves)
            if self.rng.random() < 0.75
            else self.rng.choice(self.pool[-8:])
        )

    def grow(self):
        """Add one call or a few that belong together; False if the dice chose something that does
        not fit."""
        rng, tensor = self.rng, self.choose()
        structures = [kind for kind in (*MERGES, *STRUCTURES) if kind in self.kinds]
        if structures and (rng.random() < 0.25 or len(self.leaves) > 3):
            kind = rng.choice(structures)
            if kind in MERGES:
                return self.merge(kind, tensor)
            return getattr(self, kind)(tensor)
        slow = [kind for kind in sorted(SLOW_KINDS & self.kinds) if len(tensor.shape) == 3]
        if slow and rng.random() < 0.3:
            return self.add_slow(rng.choice(slow), tensor)
        kinds = self.kinds_for(len(tensor.shape) - 1)
        if kinds:
            kind = rng.choice(kinds)
            # what ends a shape early is rarer, so that there is something to go on with
            if kind.startswith("Global") or kind in ("Flatten", "Reshape", "Permute"):
                if rng.random() < 0.6:
                    return False
            layer = self.layer(kind, tuple(tensor.shape[1:]))
            if layer is not None:
                self.call(layer, tensor)
                return True
        return False

    def add_slow(self, kind, tensor):
        rng = self.rng
        if kind in ("Attention", "AdditiveAttention"):
            self.call(getattr(L, kind)(name=self.name(kind)), [tensor, tensor])
        elif kind in ("MultiHeadAttention", "GroupQueryAttention"):
            heads, size = rng.choice((1, 2, 4)), rng.randint(1, 4)
            options = {"kernel_initializer": self.initializer, "name": self.name(kind)}
            if kind == "MultiHeadAttention":
                layer = L.MultiHeadAttention(heads, size, **options)
            else:
                layer = L.GroupQueryAttention(size, heads, 1, **options)
            output = layer(tensor, tensor)
            self.calls += 1
            self.leaves = [leaf for leaf in self.leaves if leaf is not tensor] + [output]
            self.pool.append(output)
        else:
            layer = self.slow(kind, tuple(tensor.shape[1:]))
            self.call(layer, tensor)
        return True

    # ------------------------------------------------------------ structures

    def cropped(self, tensor, sides):
        "The tensor cut down to these sides."
        spare = [have - want for have, want in zip(tensor.shape[1:-1], sides)]
        if not any(spare):
            return tensor
        axes = len(spare)
        amounts = tuple((extra // 2, extra - extra // 2) for extra in spare)
        return self.call(
            getattr(L, f"Cropping{axes}D")(
                amounts[0] if axes == 1 else amounts, name=self.name(f"Fit{axes}D")
            ),
            tensor,
            remember=False,
        )

    def widened(self, tensor, channels):
        "The tensor with this many channels, by a 1×1 convolution or a dense layer."
        if tensor.shape[-1] == channels:
            return tensor
        axes = len(tensor.shape) - 2
        options = {
            "kernel_initializer": self.initializer,
            "use_bias": "biased" not in self.without,
            "name": self.name("Match"),
        }
        if axes and f"Conv{axes}D" in self.kinds:
            options["padding"] = self.padding()
            return self.call(
                getattr(L, f"Conv{axes}D")(channels, 1, **options), tensor, remember=False
            )
        if "Dense" in self.kinds:
            return self.call(L.Dense(channels, **options), tensor, remember=False)
        return None

    def merge(self, kind, tensor):
        "Bring two or three tensors together, which are first made to match."
        alike = [
            other
            for other in self.pool[-16:]
            if len(other.shape) == len(tensor.shape) and other is not tensor
        ]
        unread = [other for other in alike if any(other is leaf for leaf in self.leaves)]
        if not alike:
            return False
        others = [self.rng.choice(unread or alike)]
        if kind != "Subtract" and self.rng.random() < 0.25:
            others.append(self.rng.choice(alike))
        tensors = [tensor, *others]
        if len(tensor.shape) > 2:
            sides = [min(sides) for sides in zip(*(one.shape[1:-1] for one in tensors))]
            tensors = [self.cropped(one, sides) for one in tensors]
        if kind != "Concatenate":
            tensors = [self.widened(one, tensor.shape[-1]) for one in tensors]
        elif sum(prod(one.shape[1:]) for one in tensors) > LARGEST:
            return False
        if any(one is None for one in tensors):
            return False
        self.call(getattr(L, kind)(name=self.name(kind)), tensors)
        return True

    def shared(self, tensor):
        "Call an earlier layer again: on a tensor of the shape that it knows."
        layers = [
            (layer, one)
            for layer, shape in self.made[-12:]
            for one in self.pool[-12:]
            if tuple(one.shape) == shape
        ]
        if not layers:
            return False
        layer, one = self.rng.choice(layers)
        self.call(layer, one)
        return True

    def nested(self, tensor):
        "A small model as a layer: a chain or one with a residual; it is called once or twice."
        kinds = [
            kind
            for kind in self.kinds_for(len(tensor.shape) - 1)
            if kind not in ("Flatten", "Reshape", "Permute", "RepeatVector")
        ]
        kinds = [kind for kind in kinds if not kind.startswith("Global")]
        if not kinds:
            return False
        name = self.name("nested")
        start = inner = keras.Input(tuple(tensor.shape[1:]), name=f"{name}_input")
        count = 0
        for _ in range(self.rng.randint(2, 4)):
            layer = self.layer(self.rng.choice(kinds), tuple(inner.shape[1:]))
            if layer is not None:
                before, inner, count = inner, layer(inner), count + 1
                if "Add" in self.kinds and before.shape == inner.shape and self.rng.random() < 0.4:
                    inner, count = L.Add(name=self.name("Add"))([before, inner]), count + 1
        if not count:
            return False
        model = keras.Model(start, inner, name=name)
        self.inside[id(model)] = count
        self.alive.append(model)
        output = self.call(model, tensor)
        if self.rng.random() < 0.3 and tuple(output.shape) == tuple(tensor.shape):
            self.call(model, output)
        return True

    def ops(self, tensor):
        "Functions of keras.ops, which a functional model records as operations."
        ops = keras.ops
        kind = self.rng.choice(("relu", "sigmoid", "exp", "square", "add", "scale", "plus", "mean",
            "reshape", "transpose", "matmul"))
        rank = len(tensor.shape) - 1
        if kind == "add":
            output = ops.add(tensor, tensor)
        elif kind == "scale":
            output = tensor * 2.0
        elif kind == "plus":
            output = tensor + 1.0
        elif kind == "mean":
            output = ops.mean(tensor, axis=-1, keepdims=True)
        elif kind == "reshape":
            output = ops.reshape(tensor, (-1, *self.other_shape(tuple(tensor.shape[1:]))))
        elif kind in ("transpose", "matmul") and rank != 2:
            return False
        elif kind == "transpose":
            output = ops.transpose(tensor, (0, 2, 1))
        elif kind == "matmul":
            turned = ops.transpose(tensor, (0, 2, 1))
            turned._keras_history.operation.name = self.name("ops_transpose")
            output = ops.matmul(tensor, turned)
            self.calls += 1
        else:
            output = getattr(ops, kind)(tensor)
        # Keras counts through the whole process
        output._keras_history.operation.name = self.name(f"ops_{kind}")
        self.call(lambda _: output, tensor, remember=False)
        return True

    def leaf(self, tensor):
        "What is read by others is an output of the model too."
        if (
            any(tensor is one for one in (*self.leaves, *self.outputs, *self.pool[:3]))
            or len(self.outputs) > 1
        ):
            return False
        self.outputs.append(tensor)
        return True


def _input_shape(rng, kinds):
    "An image, a sequence, a volume or a vector, as the kinds allow."
    shapes = [
        (shape, weight)
        for names, shape, weight in (
            (IMAGE_KINDS, "image", 6),
            (SEQUENCE_KINDS, "sequence", 3),
            (VOLUME_KINDS, "volume", 1),
            (ANY_KINDS, "vector", 1),
        )
        if kinds & set(names)
        for _ in range(1)
    ]
    shape = (
        rng.choices([shape for shape, _ in shapes], [weight for _, weight in shapes])[0]
        if shapes
        else "image"
    )
    axes = {"vector": 0, "sequence": 1, "image": 2, "volume": 3}[shape]
    sides = [rng.randint(4, 20 if axes < 3 else 7) for _ in range(axes)]
    if axes == 2 and rng.random() < 0.6:
        sides = [sides[0]] * 2
    return (*sides, rng.randint(1, 8))


def random_model(
    seed,  # a whole number, or a random.Random
    layers=40,  # calls of layers, nested ones included: about as many, never more
    kinds=KINDS,  # kinds to choose from: KINDS, some of them, or KINDS | SLOW_KINDS
    without=(),  # kinds and traits to leave out
    initializer="zeros",  # of all kernels; zeros are the quickest
):  # a `keras.Model`, of built-in layers only
    "A random functional model; the same seed and options give the same model."
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    builder = _Builder(rng, kinds, without, initializer)
    inputs = [
        keras.Input(_input_shape(rng, builder.kinds), name=f"input_{number + 1}")
        for number in range(rng.choice((1, 1, 1, 2, 3)) if layers > 2 else 1)
    ]
    builder.pool, builder.leaves, tries = list(inputs), list(inputs), 0
    while builder.calls < layers and tries < 20 * layers + 20:
        tries += 1
        before = (
            builder.calls,
            list(builder.leaves),
            list(builder.pool),
            list(builder.made),
            list(builder.outputs),
        )
        builder.grow()
        if builder.calls > layers:  # what needed several calls was too much: leave it out
            builder.calls, builder.leaves, builder.pool, builder.made, builder.outputs = before
    unread = [one for one in inputs if any(one is leaf for leaf in builder.leaves)]
    outputs = [leaf for leaf in builder.leaves if not any(leaf is one for one in inputs)]
    outputs += [one for one in builder.outputs if not any(one is leaf for leaf in outputs)]
    if not outputs:
        outputs, unread = [L.Identity(name="identity")(inputs[0])], inputs[1:]
    inputs = [one for one in inputs if not any(one is other for other in unread)]
    return keras.Model(
        inputs if len(inputs) > 1 else inputs[0],
        outputs if len(outputs) > 1 else outputs[0],
        name="random",
    )


def models(
    largest=40,  # most calls
    kinds=KINDS,  # as for `random_model`
    without=(),  # as for `random_model`
):  # a hypothesis strategy of `keras.Model`
    """Random models for hypothesis: a seed and a size are drawn, and a failure shrinks to fewer
    layers."""
    return strategies.builds(
        lambda layers, seed: random_model(seed, layers, kinds, without),
        strategies.integers(1, largest),
        strategies.integers(0, 2**32 - 1),
    )
