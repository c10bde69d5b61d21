package example;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorOperators;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.quant.Int8Experts;

/**
 * The decoder in plain Java with the Vector API; the library computes the MoE layers. A token's bits don't depend on
 * what else is computed with it: no sum goes over tokens, and every sum has a fixed order.
 */
final class CpuDecoder implements Decoder {
    private static final int BLOCK = Int8Matrix.BLOCK;
    private static final int LANES = Int8Matrix.LANES;

    private record Layer(
            float[] attentionNorm,
            Int8Matrix input,
            float[] queryNorm,
            float[] keyNorm,
            Int8Matrix output,
            float[] moeNorm,
            MoeLayer moe) {}

    /** Keys and values of a sequence, by layer and head. */
    static final class Cache implements Sequence {
        private int length;
        private final float[][] keys; // [blocks of positions, headDim, BLOCK]
        private final float[][] values; // [positions, headDim]

        Cache(int layers, int kvHeads) {
            keys = new float[layers * kvHeads][0];
            values = new float[layers * kvHeads][0];
        }

        @Override
        public int length() {
            return length;
        }

        private void makeRoom(int positions, int headDim) {
            if (positions * headDim > keys[0].length) {
                int room = Math.ceilDiv(Math.max(positions, 2 * length), BLOCK) * BLOCK * headDim;
                Arrays.setAll(keys, i -> Arrays.copyOf(keys[i], room));
                Arrays.setAll(values, i -> Arrays.copyOf(values[i], room));
            }
        }
    }

    /** Tokens to append to a sequence. */
    record Step(Cache sequence, int[] tokens) {}

    private final Model model;
    private final Int8Matrix embedding;
    private final Int8Matrix head;
    private final float[] norm;
    private final List<Layer> layers = new ArrayList<>();

    /** The rotations of all positions so far. */
    private final List<float[]> rotations = new ArrayList<>();

    /** @param options the MoE layers' options; their {@code maxTokens} limits the tokens of a {@link #hidden} call */
    CpuDecoder(Model model, MoeOptions options) {
        this.model = model;
        embedding = new Int8Matrix(model.embedding());
        head = model.head() == null ? embedding : new Int8Matrix(model.head());
        norm = model.norm();
        try {
            for (int i = 0; i < model.sizes.layers(); i++) {
                layers.add(new Layer(
                        model.attentionNorm(i),
                        new Int8Matrix(model.attentionInput(i)),
                        model.queryNorm(i),
                        model.keyNorm(i),
                        new Int8Matrix(model.attentionOutput(i)),
                        model.moeNorm(i),
                        moe(i, options)));
            }
            model.requireUnchanged();
        } catch (Throwable failure) {
            close();
            throw failure;
        }
    }

    private MoeLayer moe(int layer, MoeOptions options) {
        try (Int8Experts experts = model.experts(layer, options.scheme())) {
            return MoeLayer.of(experts, options);
        }
    }

    @Override
    public Cache start() {
        return new Cache(model.sizes.layers(), model.sizes.kvHeads());
    }

    @Override
    public String kernels() {
        MoeLayer first = layers.getFirst().moe;
        return first.kernelClass() + " on " + first.device();
    }

    @Override
    public String backend() {
        return "CPU";
    }

    @Override
    public String device() {
        return Runtime.getRuntime().availableProcessors() + " threads";
    }

    @Override
    public float[] append(Sequence sequence, int... tokens) {
        float[] last = new float[model.sizes.hidden()];
        for (int from = 0; from < tokens.length; from += CHUNK) {
            int[] chunk = Arrays.copyOfRange(tokens, from, Math.min(tokens.length, from + CHUNK));
            float[] hidden = hidden(new Step((Cache) sequence, chunk));
            System.arraycopy(hidden, (chunk.length - 1) * model.sizes.hidden(), last, 0, model.sizes.hidden());
        }
        return logits(last, 1);
    }

    /** The logits [tokens, vocabulary] of the result of {@link #hidden}. */
    float[] logits(float[] hidden, int tokens) {
        float[] logits = new float[tokens * model.sizes.vocabulary()];
        head.multiply(hidden, tokens, logits);
        return logits;
    }

    /**
     * Appends tokens to sequences, all computed together.
     *
     * @return [tokens, hidden], the head's input, in the order of the steps
     */
    float[] hidden(Step... steps) {
        int tokens = Arrays.stream(steps).mapToInt(step -> step.tokens.length).sum();
        int h = model.sizes.hidden();
        float[] hidden = new float[tokens * h];
        Cache[] cacheOf = new Cache[tokens];
        int[] positionOf = new int[tokens];
        int at = 0;
        for (Step step : steps) {
            if (step.sequence.length + step.tokens.length > model.sizes.context()) {
                throw new IllegalArgumentException("tokens: expected at most " + model.sizes.context()
                        + " in a sequence, got " + (step.sequence.length + step.tokens.length));
            }
            step.sequence.makeRoom(step.sequence.length + step.tokens.length, model.sizes.headDim());
            for (int token : step.tokens) {
                embedding.row(token, hidden, at * h);
                cacheOf[at] = step.sequence;
                positionOf[at++] = step.sequence.length++;
            }
        }
        while (rotations.size() < model.sizes.context()
                && rotations.size() <= Arrays.stream(positionOf).max().orElse(0)) {
            rotations.add(model.rotation(rotations.size()));
        }
        float[] normed = new float[tokens * h];
        float[] qkv = new float[tokens * model.sizes.qkv()];
        float[] attended = new float[tokens * model.sizes.heads() * model.sizes.headDim()];
        float[] output = new float[tokens * h];
        for (int i = 0; i < layers.size(); i++) {
            Layer layer = layers.get(i);
            norm(hidden, layer.attentionNorm, normed);
            layer.input.multiply(normed, tokens, qkv);
            int number = i;
            IntStream.range(0, tokens)
                    .parallel()
                    .forEach(t -> remember(number, layer, qkv, t, cacheOf[t], positionOf[t]));
            IntStream.range(0, tokens * model.sizes.kvHeads()).parallel().forEach(task -> {
                int t = task / model.sizes.kvHeads();
                attend(number, task % model.sizes.kvHeads(), qkv, t, cacheOf[t], positionOf[t] + 1, attended);
            });
            layer.output.multiply(attended, tokens, output);
            add(output, hidden);
            norm(hidden, layer.moeNorm, normed);
            layer.moe.forward(normed, tokens, output, null);
            add(output, hidden);
        }
        norm(hidden, norm, normed);
        return normed;
    }

    private static void add(float[] output, float[] hidden) {
        for (int i = 0; i < hidden.length; i++) {
            hidden[i] += output[i];
        }
    }

    /** RMS norm of each row; a row has as many values as {@code gains}. */
    private void norm(float[] x, float[] gains, float[] into) {
        IntStream.range(0, x.length / gains.length).parallel().forEach(row -> norm(x, row * gains.length, gains, into));
    }

    private void norm(float[] x, int at, float[] gains, float[] into) {
        double sum = 0;
        for (int i = 0; i < gains.length; i++) {
            sum += (double) x[at + i] * x[at + i];
        }
        float factor = (float) (1 / Math.sqrt(sum / gains.length + model.sizes.epsilon()));
        for (int i = 0; i < gains.length; i++) {
            into[at + i] = x[at + i] * factor * gains[i];
        }
    }

    /**
     * Norms and rotates a token's queries, in place, and its keys, and writes its keys and values into the KV cache.
     */
    private void remember(int number, Layer layer, float[] qkv, int token, Cache cache, int position) {
        int d = model.sizes.headDim();
        int query = token * model.sizes.qkv();
        int key = query + model.sizes.heads() * d;
        int value = key + model.sizes.kvHeads() * d;
        if (layer.queryNorm != null) {
            for (int at = query; at < key; at += layer.queryNorm.length) {
                norm(qkv, at, layer.queryNorm, qkv);
            }
            for (int at = key; at < value; at += layer.keyNorm.length) {
                norm(qkv, at, layer.keyNorm, qkv);
            }
        }
        float[] rotation = rotations.get(position);
        for (int head = query; head < value; head += d) {
            for (int i = 0; i < d / 2; i++) {
                float first = qkv[head + i];
                float second = qkv[head + d / 2 + i];
                qkv[head + i] = first * rotation[i] - second * rotation[d / 2 + i];
                qkv[head + d / 2 + i] = second * rotation[i] + first * rotation[d / 2 + i];
            }
        }
        for (int head = 0; head < model.sizes.kvHeads(); head++) {
            float[] keys = cache.keys[number * model.sizes.kvHeads() + head];
            int to = position / BLOCK * BLOCK * d + position % BLOCK;
            for (int i = 0; i < d; i++) {
                keys[to + i * BLOCK] = qkv[key + head * d + i];
            }
            System.arraycopy(
                    qkv, value + head * d, cache.values[number * model.sizes.kvHeads() + head], position * d, d);
        }
    }

    /** Attention of one key head's query heads to the first {@code positions}. */
    private void attend(int layer, int kvHead, float[] qkv, int token, Cache cache, int positions, float[] into) {
        int d = model.sizes.headDim();
        int group = model.sizes.heads() / model.sizes.kvHeads();
        float[] keys = cache.keys[layer * model.sizes.kvHeads() + kvHead];
        float[] values = cache.values[layer * model.sizes.kvHeads() + kvHead];
        float[] scores = new float[Math.ceilDiv(positions, BLOCK) * BLOCK];
        float scale = (float) (1 / Math.sqrt(d));
        for (int head = kvHead * group; head < (kvHead + 1) * group; head++) {
            int query = token * model.sizes.qkv() + head * d;
            for (int from = 0; from < positions; from += BLOCK) {
                products(keys, from * d, qkv, query, d, scores, from);
                products(keys, from * d + BLOCK / 2, qkv, query, d, scores, from + BLOCK / 2);
            }
            float sum = exponentials(scores, positions, scale);
            int to = (token * model.sizes.heads() + head) * d;
            for (int i = 0; i < d; i += LANES) {
                if (i + LANES <= d) {
                    FloatVector all = FloatVector.zero(Int8Matrix.F);
                    for (int p = 0; p < positions; p++) {
                        all = FloatVector.fromArray(Int8Matrix.F, values, p * d + i)
                                .fma(FloatVector.broadcast(Int8Matrix.F, scores[p]), all);
                    }
                    all.div(sum).intoArray(into, to + i);
                } else {
                    for (int j = i; j < d; j++) {
                        float all = 0;
                        for (int p = 0; p < positions; p++) {
                            all = Math.fma(values[p * d + j], scores[p], all);
                        }
                        into[to + j] = all / sum;
                    }
                }
            }
        }
    }

    /** Multiplies a query by four vectors of keys. */
    private static void products(float[] keys, int at, float[] q, int from, int d, float[] scores, int to) {
        FloatVector s0 = FloatVector.zero(Int8Matrix.F);
        FloatVector s1 = FloatVector.zero(Int8Matrix.F);
        FloatVector s2 = FloatVector.zero(Int8Matrix.F);
        FloatVector s3 = FloatVector.zero(Int8Matrix.F);
        for (int i = 0; i < d; i++) {
            int k = at + i * BLOCK;
            FloatVector value = FloatVector.broadcast(Int8Matrix.F, q[from + i]);
            s0 = FloatVector.fromArray(Int8Matrix.F, keys, k).fma(value, s0);
            s1 = FloatVector.fromArray(Int8Matrix.F, keys, k + LANES).fma(value, s1);
            s2 = FloatVector.fromArray(Int8Matrix.F, keys, k + 2 * LANES).fma(value, s2);
            s3 = FloatVector.fromArray(Int8Matrix.F, keys, k + 3 * LANES).fma(value, s3);
        }
        s0.intoArray(scores, to);
        s1.intoArray(scores, to + LANES);
        s2.intoArray(scores, to + 2 * LANES);
        s3.intoArray(scores, to + 3 * LANES);
    }

    /**
     * Replaces the first {@code count} scores by exp(scale · (score − maximum)) and returns their sum. It uses its own
     * polynomial, because the exp of Java's vectors has different last bits before and after C2 compiles it.
     */
    private static float exponentials(float[] scores, int count, float scale) {
        float greatest = Float.NEGATIVE_INFINITY;
        for (int i = 0; i < count; i++) {
            greatest = Math.max(greatest, scores[i]);
        }
        for (int i = 0; i < count; i += LANES) {
            FloatVector x = FloatVector.fromArray(Int8Matrix.F, scores, i)
                    .sub(greatest)
                    .mul(scale)
                    .max(-87f)
                    .min(0f); // unused values follow after count
            FloatVector shifted = x.fma(1.4426950408889634f, 0x1.8p23f); // rounds to an integer in the low bits
            FloatVector whole = shifted.sub(0x1.8p23f);
            FloatVector r = whole.fma(FloatVector.broadcast(Int8Matrix.F, -0.693359375f), x);
            r = whole.fma(FloatVector.broadcast(Int8Matrix.F, 2.12194440e-4f), r);
            FloatVector e = FloatVector.broadcast(Int8Matrix.F, 1f / 720);
            e = e.fma(r, FloatVector.broadcast(Int8Matrix.F, 1f / 120));
            e = e.fma(r, FloatVector.broadcast(Int8Matrix.F, 1f / 24));
            e = e.fma(r, FloatVector.broadcast(Int8Matrix.F, 1f / 6));
            e = e.fma(r, FloatVector.broadcast(Int8Matrix.F, 0.5f));
            e = e.fma(r, FloatVector.broadcast(Int8Matrix.F, 1f));
            e = e.fma(r, FloatVector.broadcast(Int8Matrix.F, 1f));
            e.reinterpretAsInts()
                    .add(shifted.reinterpretAsInts().lanewise(VectorOperators.LSHL, 23))
                    .reinterpretAsFloats()
                    .intoArray(scores, i);
        }
        double sum = 0;
        for (int i = 0; i < count; i++) {
            sum += scores[i];
        }
        return (float) sum;
    }

    @Override
    public void close() {
        Cleanup.each(layers, layer -> layer.moe.close());
    }
}
