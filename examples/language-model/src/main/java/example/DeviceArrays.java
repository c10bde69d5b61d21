package example;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.WeightRows;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** The arrays that all graphs of a {@link DeviceDecoder} share: what goes from task to task, and a model's ends. */
final class DeviceArrays {
    /** The scheme of the matrices outside the experts. */
    static final Int8Scheme DENSE = Int8Scheme.W8A16_CHANNEL;

    /** The position of a step's first token, then its tokens. */
    final IntArray step;

    final FloatArray hidden;
    final FloatArray normed;
    final FloatArray qkv;
    final FloatArray attended;
    final FloatArray attendedParts;

    /** The output of the MoE layer before, which is still to be added to {@link #hidden}. */
    final FloatArray output;

    /** The same of attention. */
    final FloatArray projected;

    final FloatArray rotations;

    /** Each layer's KV cache, in the layouts of {@link AttentionKernels}. */
    final List<FloatArray> keys = new ArrayList<>();

    final List<FloatArray> values = new ArrayList<>();
    final Packed embedding;
    final Packed head;
    final Gains gains;
    final FloatArray logits;
    final IntArray places = new IntArray(TokenKernels.CHOICES);
    final IntArray next = new IntArray(1);

    DeviceArrays(Model model, int maxTokens, int context) {
        Model.Sizes sizes = model.sizes;
        int width = sizes.heads() * sizes.headDim();
        if (Math.max(sizes.hidden(), width) / 4 > ProductKernels.WIDEST) {
            throw new IllegalArgumentException("hidden and heads times head_dim: expected at most "
                    + 4 * ProductKernels.WIDEST + ", got " + sizes.hidden() + " and " + width);
        }
        step = new IntArray(1 + maxTokens);
        hidden = zeros(maxTokens * sizes.hidden());
        normed = zeros(maxTokens * sizes.hidden());
        qkv = zeros(maxTokens * sizes.qkv());
        attended = zeros(maxTokens * width);
        attendedParts = zeros(sizes.heads() * AttentionKernels.PARTS * (sizes.headDim() + 2));
        output = zeros(maxTokens * sizes.hidden());
        projected = zeros(maxTokens * sizes.hidden());
        rotations = new FloatArray(context * sizes.headDim());
        for (int p = 0; p < context; p++) {
            copy(MemorySegment.ofArray(model.rotation(p)), rotations.getSegment(), p * sizes.headDim());
        }
        for (int i = 0; i < sizes.layers(); i++) {
            keys.add(zeros(Math.multiplyExact(context, sizes.kvHeads() * sizes.headDim())));
            values.add(zeros(Math.multiplyExact(context, sizes.kvHeads() * sizes.headDim())));
        }
        embedding = Packed.of(model.embedding());
        head = model.head() == null ? embedding : Packed.of(model.head());
        gains = new Gains(model);
        logits = zeros(sizes.vocabulary());
        for (IntArray each : List.of(step, places, next)) {
            each.init(0);
        }
    }

    static FloatArray zeros(int count) {
        FloatArray zeros = new FloatArray(count);
        zeros.init(0);
        return zeros;
    }

    /** Copies values of four bytes to index {@code at}. */
    static void copy(MemorySegment from, MemorySegment to, int at) {
        MemorySegment.copy(from, 0, to, 4L * at, from.byteSize());
    }

    static Int8Tensor quantize(WeightRows of, Arena arena) {
        if (of.cols() % 16 != 0) {
            throw new IllegalArgumentException(of.source() + ": expected a multiple of 16 columns, got " + of.cols());
        }
        return Int8Quantizer.quantize(of, Int8Quantization.of(DENSE), arena);
    }

    /** Copies an int8 matrix to index {@code at}, in the layout of {@link ProductKernels}. */
    static void pack(Int8Tensor of, IntArray into, int at) {
        int ints = of.cols() / 4;
        IntStream.range(0, of.rows()).parallel().forEach(r -> {
            byte[] row = new byte[of.cols()];
            of.row(0, r, row);
            for (int i = 0; i < ints; i++) {
                int low = row[i] & 0xFF | (row[i + ints] & 0xFF) << 8;
                into.set(at + r * ints + i, low | (row[i + 2 * ints] & 0xFF) << 16 | row[i + 3 * ints] << 24);
            }
        });
    }

    /** An int8 matrix in the layout of {@link ProductKernels}. */
    static final class Packed {
        final int rows;
        final int cols;
        final IntArray values;
        final FloatArray scales;

        static Packed of(WeightRows rows) {
            try (Arena arena = Arena.ofShared()) {
                return new Packed(quantize(rows, arena));
            }
        }

        private Packed(Int8Tensor of) {
            rows = of.rows();
            cols = of.cols();
            values = new IntArray(Math.multiplyExact(rows, of.rowBytes() / 4));
            pack(of, values, 0);
            scales = FloatArray.fromArray(of.scales());
        }
    }

    /**
     * All norms' gains in one array, with their offsets. Each array takes three of a graph's nodes, of which TornadoVM
     * allows 1024.
     */
    static final class Gains {
        final FloatArray values;
        final int[] attention;
        final int[] moe;

        /** The offset of the queries' gains, followed by the keys'. */
        final int[] heads;

        final int last;

        /** The number of the queries' gains: none, one head's, or all heads'. */
        final int width;

        Gains(Model model) {
            int layers = model.sizes.layers();
            attention = new int[layers];
            moe = new int[layers];
            heads = new int[layers];
            List<float[]> all = new ArrayList<>();
            int size = 0;
            int width = 0;
            for (int i = 0; i < layers; i++) {
                attention[i] = size;
                size += add(all, model.attentionNorm(i));
                moe[i] = size;
                size += add(all, model.moeNorm(i));
                heads[i] = size;
                float[] query = model.queryNorm(i);
                if (query != null) {
                    width = query.length;
                    size += add(all, query) + add(all, model.keyNorm(i));
                }
            }
            last = size;
            size += add(all, model.norm());
            this.width = width;
            values = new FloatArray(size);
            int at = 0;
            for (float[] each : all) {
                copy(MemorySegment.ofArray(each), values.getSegment(), at);
                at += each.length;
            }
        }

        private static int add(List<float[]> all, float[] gains) {
            all.add(gains);
            return gains.length;
        }
    }
}
