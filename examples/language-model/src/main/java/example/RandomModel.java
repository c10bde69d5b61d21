package example;

import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.quant.WeightRows;

/**
 * A model with random weights, to measure one that you don't have: {@code random:qwen3-30b-a3b} or {@code random:small}
 * (16 layers of 16 experts); append {@code :LAYERS} for fewer layers. On the host its layers share their experts'
 * weights.
 */
final class RandomModel extends Model {
    private final FusedMoeConfig config;
    private final Arena arena = Arena.ofShared();
    private final Int8Tensor w13;
    private final Int8Tensor w2;
    private final RouterWeights router;

    RandomModel(String name) {
        this(name, name.split(":"));
    }

    private RandomModel(String name, String[] parts) {
        super(name, sizes(parts));
        boolean small = parts[1].equals("small");
        config = FusedMoeConfig.builder()
                .numExperts(small ? 16 : 128)
                .expertsPerToken(small ? 2 : 8)
                .hiddenDim(sizes.hidden())
                .intermediateSize(768)
                .build();
        w13 = random(2 * config.intermediateSize(), config.hiddenDim());
        w2 = random(config.hiddenDim(), config.intermediateSize());
        router = RouterWeights.of(floats(config.numExperts() * config.hiddenDim(), 1, 0.05));
    }

    private static Sizes sizes(String[] parts) {
        int layers = parts.length > 2 ? Integer.parseInt(parts[2]) : 0;
        return switch (parts.length > 1 ? parts[1] : "") {
            case "qwen3-30b-a3b" -> new Sizes(layers > 0 ? layers : 48, 2048, 32, 4, 128, 151_936, 40_960, 1e-6f, 1e6);
            case "small" -> new Sizes(layers > 0 ? layers : 16, 2048, 16, 4, 128, 32_000, 4096, 1e-6f, 1e4);
            default ->
                throw new IllegalArgumentException(
                        "model: expected random:qwen3-30b-a3b or random:small, got " + String.join(":", parts));
        };
    }

    private Int8Tensor random(int rows, int cols) {
        Int8Tensor tensor = Int8Tensor.allocate(arena, config.numExperts(), rows, cols);
        Arrays.fill(tensor.scales(), (float) (1 / (73 * Math.sqrt(cols))));
        IntStream.range(0, tensor.experts()).parallel().forEach(expert -> {
            SplittableRandom random = new SplittableRandom(expert);
            byte[] row = new byte[cols];
            for (int r = 0; r < rows; r++) {
                random.nextBytes(row);
                tensor.setRow(expert, r, row, 0);
            }
        });
        return tensor;
    }

    private static float[] floats(int count, long seed, double most) {
        SplittableRandom random = new SplittableRandom(seed);
        float[] values = new float[count];
        for (int i = 0; i < count; i++) {
            values[i] = (float) (most * (2 * random.nextFloat() - 1));
        }
        return values;
    }

    private static float[] ones(int count) {
        float[] ones = new float[count];
        Arrays.fill(ones, 1);
        return ones;
    }

    private static WeightRows matrix(int rows, int cols, long seed, double most) {
        return new WeightRows() {
            @Override
            public int rows() {
                return rows;
            }

            @Override
            public int cols() {
                return cols;
            }

            @Override
            public void row(int row, float[] into) {
                System.arraycopy(floats(cols, seed * rows + row, most), 0, into, 0, cols);
            }
        };
    }

    @Override
    String description() {
        return "random numbers: " + sizes.layers() + " layers";
    }

    @Override
    Text text() {
        return null;
    }

    @Override
    WeightRows embedding() {
        return matrix(sizes.vocabulary(), sizes.hidden(), 1, 1);
    }

    @Override
    WeightRows head() {
        return matrix(sizes.vocabulary(), sizes.hidden(), 2, 1.7 / Math.sqrt(sizes.hidden()));
    }

    @Override
    float[] norm() {
        return ones(sizes.hidden());
    }

    @Override
    float[] attentionNorm(int layer) {
        return norm();
    }

    @Override
    WeightRows attentionInput(int layer) {
        return matrix(sizes.qkv(), sizes.hidden(), 10 + layer, 1.7 / Math.sqrt(sizes.hidden()));
    }

    @Override
    float[] queryNorm(int layer) {
        return ones(sizes.headDim());
    }

    @Override
    float[] keyNorm(int layer) {
        return queryNorm(layer);
    }

    @Override
    WeightRows attentionOutput(int layer) {
        int cols = sizes.heads() * sizes.headDim();
        return matrix(sizes.hidden(), cols, 10_000 + layer, 1.7 / Math.sqrt(cols));
    }

    @Override
    float[] moeNorm(int layer) {
        return norm();
    }

    @Override
    Int8Experts experts(int layer, Int8Scheme scheme) {
        Int8Scheme own = scheme == null ? Int8Scheme.W8A8_CHANNEL : scheme;
        return Int8Experts.builder(config, own, w13, w2, Arena.ofShared())
                .router(router)
                .build();
    }

    @Override
    void requireUnchanged() {}

    @Override
    public void close() {
        arena.close();
    }
}
