package org.tornadomoe.quant;

import java.lang.foreign.Arena;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Objects;
import java.util.concurrent.CancellationException;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.IntUnaryOperator;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/**
 * Quantises a layer's weights to int8, in float arithmetic. The values that share a scale are a row, a block, a group
 * or an expert: {@code scale = max(|w|, 1e-10) / 127}, {@code q = round(w / scale)} with halves to even, clamped to
 * [-127, 127]. For rows that is vLLM's online rule ({@code quantization/online/int8.py}) with a floor, so that a row of
 * zeros gives zeros instead of NaN.
 *
 * <p>With zero points, the range from the minimum to the maximum weight, 0 included, is mapped to [-128, 127]: {@code
 * scale = max(greatest − least, 1e-10) / 255}, {@code z = round(−least / scale) − 128}, {@code q = round(w / scale) +
 * z}.
 *
 * <p>The router and biases stay float.
 */
public final class Int8Quantizer {
    /** Whether {@link NumberGroups}, which needs the Vector API, can be used. */
    private static final boolean VECTORS =
            ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent();

    /**
     * Added to a float below 2^22, it leaves the nearest integer, halves to even, in the lower bits; subtracted again,
     * it leaves that integer as a float.
     */
    static final float ROUNDS = 0x1.8p23f;

    /** Rows that a thread takes at a time: enough that threads don't queue, few enough that they finish together. */
    private static final int CHUNK = 64;

    private Int8Quantizer() {}

    /**
     * Quantises with the scheme's default block or group; otherwise like the method with an {@link Int8Quantization}.
     */
    public static Int8Experts quantize(ExpertWeights source, Int8Scheme scheme, Progress progress) {
        return quantize(source, Int8Quantization.of(scheme), progress);
    }

    /**
     * Quantises on all cores. The same weights give the same bits on any number of cores.
     *
     * @param progress is notified in rows: E * 2I of w13, then E * H of w2
     * @return the experts, which the caller must close; activation scales are found at run time
     * @throws IllegalArgumentException if a weight is NaN or infinite; the message names the file and tensor if known,
     *     expert, projection, row and column. After this or any other failure nothing stays allocated.
     * @throws CancellationException if the calling thread is interrupted meanwhile; it stays interrupted
     * @throws OutOfMemoryError if the int8 weights do not fit
     * @throws RuntimeException if the weights' files were changed meanwhile ({@link ExpertWeights#requireUnchanged})
     */
    public static Int8Experts quantize(ExpertWeights source, Int8Quantization quantization, Progress progress) {
        return quantize(source, quantization, progress, Arena.ofShared());
    }

    /** Quantises into an arena that the result owns; closes it if this throws. */
    static Int8Experts quantize(ExpertWeights source, Int8Quantization quantization, Progress progress, Arena arena) {
        try {
            FusedMoeConfig config = source.config();
            RouterWeights router = source.router();
            router.requireFits(config);
            int experts = config.globalNumExperts();
            Int8Tensor w13 = allocate(arena, experts, config.gateUpRows(), config.hiddenDim(), quantization);
            Int8Tensor w2 = allocate(arena, experts, config.hiddenDim(), config.intermediateSize(), quantization);
            long w13Rows = (long) experts * w13.rows();
            long rows = w13Rows + (long) experts * w2.rows();
            quantizeRows(
                    w13,
                    source::gateUpRow,
                    source::gateUpCodes,
                    source::gateUpNumbers,
                    (expert, row) -> config.gateUpRow(row),
                    source::gateUpSource,
                    done -> progress.advanced(done, rows));
            quantizeRows(
                    w2,
                    source::downRow,
                    source::downCodes,
                    source::downNumbers,
                    (expert, row) -> "down projection, row " + row,
                    (expert, row) -> source.downSource(expert),
                    done -> progress.advanced(w13Rows + done, rows));
            float @Nullable [] w13Bias = source.w13Bias();
            float @Nullable [] w2Bias = source.w2Bias();
            source.requireUnchanged();
            return Int8Experts.builder(config, quantization.scheme(), w13, w2, arena)
                    .router(router)
                    .biases(w13Bias, w2Bias)
                    .roundToNearest(quantization.roundToNearest())
                    .build();
        } catch (InternalError e) {
            arena.close();
            source.requireUnchanged();
            throw e;
        } catch (Throwable e) {
            arena.close();
            throw e;
        }
    }

    /**
     * Quantises one matrix on all cores, as {@link #quantize(ExpertWeights, Int8Quantization, Progress)} does a
     * projection; for matrices outside the experts.
     *
     * @param arena the arena for the result, [1, rows, cols]
     * @throws IllegalArgumentException if a weight is NaN or infinite, or the matrix is empty
     * @throws CancellationException if the calling thread is interrupted meanwhile; it stays interrupted
     */
    public static Int8Tensor quantize(WeightRows source, Int8Quantization quantization, Arena arena) {
        Int8Tensor tensor = allocate(arena, 1, source.rows(), source.cols(), quantization);
        quantizeRows(
                tensor,
                (_, row, into) -> source.row(row, into),
                (_, _, _, _, _) -> null,
                (_, _, _, _, _, _) -> false,
                (_, row) -> "row " + row,
                (_, _) -> source.source(),
                _ -> {});
        return tensor;
    }

    private static Int8Tensor allocate(Arena arena, int experts, int rows, int cols, Int8Quantization quantization) {
        int perScale = quantization.colsPerScale(cols);
        return Int8Tensor.allocate(
                arena, experts, rows, cols, quantization.rowsPerScale(rows), perScale, quantization.zeroPoints());
    }

    @FunctionalInterface
    private interface RowReader {
        void read(int expert, int row, float[] into);
    }

    @FunctionalInterface
    private interface CodeReader {
        float @Nullable [] read(int expert, int row, int colsPerScale, byte[] codes, float[] scales);
    }

    @FunctionalInterface
    private interface NumberReader {
        boolean read(int expert, int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins);
    }

    @FunctionalInterface
    private interface RowName {
        String of(int expert, int row);
    }

    @FunctionalInterface
    interface RowsDone {
        void rows(long done);
    }

    private static void quantizeRows(
            Int8Tensor tensor,
            RowReader reader,
            CodeReader coded,
            NumberReader numbered,
            RowName name,
            RowName source,
            RowsDone progress) {
        // A band is a set of rows that share scales; one thread computes a whole band.
        int bandsPerExpert = tensor.scaleRows();
        int chunk = Math.max(1, CHUNK / tensor.rowsPerScale());
        inParallel(
                tensor.experts() * bandsPerExpert,
                chunk,
                () -> {
                    Band band = new Band(tensor, reader, coded, numbered, name, source);
                    return i -> band.quantize(i / bandsPerExpert, i % bandsPerExpert);
                },
                progress);
    }

    /**
     * Runs all bands on all cores.
     *
     * @param chunk bands that a thread takes at a time
     * @param threads makes each thread's function, which computes a band and returns its number of rows
     */
    static void inParallel(int bands, int chunk, Supplier<IntUnaryOperator> threads, RowsDone progress) {
        AtomicLong next = new AtomicLong();
        // Threads take chunks in ascending order and drop a chunk only for a failure before it. So on any number of
        // cores the lowest failure is the first one in the tensor.
        ConcurrentSkipListMap<Long, Throwable> failures = new ConcurrentSkipListMap<>();
        Object reporting = new Object();
        long[] done = {0};
        Runnable worker = () -> {
            long from = -1;
            try {
                IntUnaryOperator thread = threads.get();
                for (from = next.getAndAdd(chunk);
                        from < bands && failures.headMap(from).isEmpty();
                        from = next.getAndAdd(chunk)) {
                    int to = (int) Math.min(bands, from + chunk);
                    int rows = 0;
                    for (int i = (int) from; i < to; i++) {
                        rows += thread.applyAsInt(i);
                    }
                    synchronized (reporting) {
                        done[0] += rows;
                        progress.rows(done[0]);
                    }
                }
            } catch (Throwable e) {
                failures.put(from, e);
            }
        };
        int cores = Runtime.getRuntime().availableProcessors();
        // Closing waits for the workers. If this thread is interrupted, it interrupts them and goes on waiting.
        try (ExecutorService pool = Executors.newFixedThreadPool(cores)) {
            for (int i = 0; i < cores; i++) {
                pool.execute(worker);
            }
        }
        if (!failures.isEmpty()) {
            switch (failures.firstEntry().getValue()) {
                case RuntimeException e -> throw e;
                case Error e -> throw e;
                case Throwable e -> throw new AssertionError(e);
            }
        }
    }

    /** One thread's buffers for quantising the rows that share scales. */
    private static final class Band {
        /** The maximum number of a band's values to keep; larger bands are read twice. */
        private static final int MOST_KEPT = 1 << 19;

        /** The minimum number of values per scale for quantising by codes. */
        private static final int MANY = 1024;

        private static final VarHandle LONGS =
                MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);
        private static final long MAGNITUDES = 0x7f7f7f7f7f7f7f7fL;
        private static final long ONES = 0x0101010101010101L;

        /** The bits of infinity; only NaNs are above, without their sign. */
        private static final int INFINITY = 0x7f800000;

        /**
         * Groups below this size are too short for the JVM to vectorise; there comparing bits is faster than comparing
         * floats.
         */
        private static final int SHORT_GROUP = 256;

        private final Int8Tensor tensor;
        private final RowReader reader;
        private final CodeReader coded;
        private final NumberReader numbered;
        private final RowName name;
        private final RowName source;
        private final int colsPerScale;

        /** The band's rows; one row if they are not kept. */
        private final float[][] weights;

        private final byte[] values;

        /** The scale of each column. */
        private final float[] scaleOf;

        /** The zero point of each column; zeros without zero points. */
        private final float[] zeroOf;

        private final float[] least;
        private final float[] greatest;

        /** Rows as codes, and their scales; empty if there are too few values per scale, or zero points. */
        private final byte[][] codes;

        private final float[][] scalesOf;

        /** The int8 value of each code, for one group after the other, and the scale for which it holds. */
        private final byte[][] mapped;

        private final float[] mappedScale;

        /** A row as small integers; null if they can't be used. */
        private final @Nullable NumberGroups groups;

        Band(
                Int8Tensor tensor,
                RowReader reader,
                CodeReader coded,
                NumberReader numbered,
                RowName name,
                RowName source) {
            this.tensor = tensor;
            this.reader = reader;
            this.coded = coded;
            this.numbered = numbered;
            this.name = name;
            this.source = source;
            colsPerScale = Math.min(tensor.colsPerScale(), tensor.cols());
            int rows = Math.min(tensor.rows(), tensor.rowsPerScale());
            weights = new float[(long) rows * tensor.cols() <= MOST_KEPT ? rows : 1][tensor.cols()];
            values = new byte[tensor.cols()];
            scaleOf = new float[tensor.cols()];
            zeroOf = new float[tensor.cols()];
            least = new float[tensor.scaleCols()];
            greatest = new float[tensor.scaleCols()];
            boolean many = tensor.zeroPoints() == null && (long) rows * colsPerScale >= MANY;
            codes = new byte[many && weights.length == rows ? rows : 0][tensor.cols()];
            scalesOf = new float[codes.length][tensor.scaleCols()];
            mapped = new byte[codes.length == 0 ? 0 : tensor.scaleCols()][256];
            mappedScale = new float[tensor.scaleCols()];
            groups = VECTORS
                            && tensor.zeroPoints() == null
                            && rows == 1
                            && NumberGroups.serve(tensor.cols(), colsPerScale)
                    ? new NumberGroups(tensor.cols(), colsPerScale)
                    : null;
        }

        /**
         * Finds the scales in a first pass over the rows and rounds in a second, which reads them again if they are too
         * many to keep.
         */
        int quantize(int expert, int band) {
            int first = band * tensor.rowsPerScale();
            int last = Math.min(tensor.rows() - first, tensor.rowsPerScale()) + first;
            if (last - first <= codes.length && quantizeCodes(expert, first, last)) {
                return last - first;
            }
            if (groups != null && quantizeNumbers(groups, expert, first)) {
                return 1;
            }
            boolean kept = last - first <= weights.length;
            Arrays.fill(least, 0);
            Arrays.fill(greatest, 0);
            for (int row = first; row < last; row++) {
                if (Thread.currentThread().isInterrupted()) {
                    throw new CancellationException("quantisation was interrupted");
                }
                float[] weights = this.weights[kept ? row - first : 0];
                reader.read(expert, row, weights);
                widen(expert, row, weights);
            }
            int scales = tensor.scaleIndex(expert, first, 0);
            for (int i = 0; i < least.length; i++) {
                setScale(scales + i, least[i], greatest[i]);
            }
            for (int row = first; row < last; row++) {
                float[] weights = this.weights[kept ? row - first : 0];
                if (!kept) {
                    reader.read(expert, row, weights);
                }
                round(scales, weights);
                tensor.setRow(expert, row, values, 0);
            }
            return last - first;
        }

        /**
         * The same by codes: the largest code has the largest value, and under one scale each code maps to one int8
         * value.
         *
         * @return false if the rows aren't stored as codes, or contain a value that must be refused
         */
        private boolean quantizeCodes(int expert, int first, int last) {
            Arrays.fill(greatest, 0);
            float[] table = null;
            for (int row = first; row < last; row++) {
                if (Thread.currentThread().isInterrupted()) {
                    throw new CancellationException("quantisation was interrupted");
                }
                byte[] codes = this.codes[row - first];
                float[] scales = scalesOf[row - first];
                float[] its = coded.read(expert, row, colsPerScale, codes, scales);
                if (its == null || (table != null && its != table)) {
                    return false;
                }
                table = its;
                for (int group = 0, from = 0; from < codes.length; group++, from += colsPerScale) {
                    int greatestCode = greatestCode(codes, from, Math.min(codes.length, from + colsPerScale));
                    float most = table[greatestCode] * scales[group];
                    if (!(scales[group] >= 0 && most <= Float.MAX_VALUE)) {
                        return false;
                    }
                    greatest[group] = Math.max(greatest[group], most);
                }
            }
            int index = tensor.scaleIndex(expert, first, 0);
            for (int i = 0; i < greatest.length; i++) {
                setScale(index + i, 0, greatest[i]);
            }
            Arrays.fill(mappedScale, Float.NaN);
            for (int row = first; row < last; row++) {
                byte[] codes = this.codes[row - first];
                for (int group = 0, from = 0; from < codes.length; group++, from += colsPerScale) {
                    float scale = scalesOf[row - first][group];
                    if (scale != mappedScale[group]) {
                        map(Objects.requireNonNull(table), scale, tensor.scales()[index + group], mapped[group]);
                        mappedScale[group] = scale;
                    }
                    map(codes, from, Math.min(codes.length, from + colsPerScale), mapped[group]);
                }
                tensor.setRow(expert, row, codes, 0);
            }
            return true;
        }

        /** The same by small integers. */
        private boolean quantizeNumbers(NumberGroups row, int expert, int first) {
            if (Thread.currentThread().isInterrupted()) {
                throw new CancellationException("quantisation was interrupted");
            }
            if (!numbered.read(expert, first, colsPerScale, row.numbers, row.scales, row.mins)
                    || !row.quantize(tensor.scales(), tensor.scaleIndex(expert, first, 0), values)) {
                return false;
            }
            tensor.setRow(expert, first, values, 0);
            return true;
        }

        /** Without the signs. */
        private static int greatestCode(byte[] codes, int from, int to) {
            long most = 0; // one maximum for each of eight byte positions
            int i = from;
            for (; i + 8 <= to; i += 8) {
                long eight = (long) LONGS.get(codes, i) & MAGNITUDES;
                long isLess = (((((most | ~MAGNITUDES) - eight) >>> 7) & ONES) ^ ONES) * 0xff;
                most = (eight & isLess) | (most & ~isLess);
            }
            int greatest = 0;
            for (; most != 0; most >>>= 8) {
                greatest = Math.max(greatest, (int) most & 0x7f);
            }
            for (; i < to; i++) {
                greatest = Math.max(greatest, codes[i] & 0x7f);
            }
            return greatest;
        }

        /** Like {@link #round}, for the values of all codes under one scale. */
        private static void map(float[] table, float scale, float into, byte[] mapped) {
            for (int code = 0; code < mapped.length; code++) {
                float nearest = table[code] * scale / into + ROUNDS - ROUNDS;
                mapped[code] = (byte) Math.max(-127f, Math.min(127f, nearest));
            }
        }

        private static void map(byte[] codes, int from, int to, byte[] mapped) {
            for (int i = from; i < to; i++) {
                codes[i] = mapped[codes[i] & 0xff];
            }
        }

        private void widen(int expert, int row, float[] weights) {
            for (int group = 0, from = 0; from < weights.length; group++, from += colsPerScale) {
                int to = Math.min(weights.length, from + colsPerScale);
                if (tensor.zeroPoints() == null && colsPerScale <= SHORT_GROUP) {
                    int most = greatestBits(weights, from, to);
                    if (most >= INFINITY) {
                        refuse(expert, row, weights);
                    }
                    greatest[group] = Math.max(greatest[group], Float.intBitsToFloat(most));
                    continue;
                }
                float low = 0;
                float high = 0;
                for (int i = from; i < to; i++) {
                    low = Math.min(low, weights[i]);
                    high = Math.max(high, weights[i]);
                }
                if (!(low >= -Float.MAX_VALUE && high <= Float.MAX_VALUE)) { // NaN stays NaN
                    refuse(expert, row, weights);
                }
                least[group] = Math.min(least[group], low);
                greatest[group] = Math.max(greatest[group], high);
            }
        }

        /** The maximum of the absolute values' bits. Four independent maxima hide the latency. */
        private static int greatestBits(float[] weights, int from, int to) {
            int a = 0;
            int b = 0;
            int c = 0;
            int d = 0;
            int i = from;
            for (; i + 4 <= to; i += 4) {
                a = Math.max(a, magnitude(weights[i]));
                b = Math.max(b, magnitude(weights[i + 1]));
                c = Math.max(c, magnitude(weights[i + 2]));
                d = Math.max(d, magnitude(weights[i + 3]));
            }
            for (; i < to; i++) {
                a = Math.max(a, magnitude(weights[i]));
            }
            return Math.max(Math.max(a, b), Math.max(c, d));
        }

        private static int magnitude(float weight) {
            return Float.floatToRawIntBits(weight) & Integer.MAX_VALUE;
        }

        private void refuse(int expert, int row, float[] weights) {
            int i = 0;
            while (Float.isFinite(weights[i])) {
                i++;
            }
            String from = source.of(expert, row);
            throw new IllegalArgumentException((from.isEmpty() ? "weight" : from) + ": expected finite values, got "
                    + weights[i] + " at expert " + expert + ", " + name.of(expert, row) + ", column " + i);
        }

        private void setScale(int at, float least, float greatest) {
            byte[] zeroPoints = tensor.zeroPoints();
            if (zeroPoints == null) {
                tensor.scales()[at] = Math.max(Math.max(-least, greatest), Int8Activations.MIN_ABS_MAX) / 127f;
            } else {
                // The difference of two floats may overflow float.
                double range = Math.max((double) greatest - least, Int8Activations.MIN_ABS_MAX);
                float scale = (float) (range / 255);
                tensor.scales()[at] = scale;
                zeroPoints[at] = (byte) (Math.clamp((long) Math.rint(-least / scale), 0, 255) - 128);
            }
        }

        /** Rounds a row; overwrites its weights. */
        private void round(int scales, float[] weights) {
            byte[] zeroPoints = tensor.zeroPoints();
            float least = zeroPoints == null ? -127 : -128;
            for (int group = 0, from = 0; from < weights.length; group++, from += colsPerScale) {
                int to = Math.min(weights.length, from + colsPerScale);
                Arrays.fill(scaleOf, from, to, tensor.scales()[scales + group]);
                if (zeroPoints != null) {
                    Arrays.fill(zeroOf, from, to, zeroPoints[scales + group]);
                }
            }
            round(weights, scaleOf, zeroOf, least);
            narrow(weights, values);
        }

        /** A separate loop, like the next one, so that the JVM vectorises it. */
        private static void round(float[] weights, float[] scales, float[] zeros, float least) {
            for (int i = 0; i < weights.length; i++) {
                float nearest = weights[i] / scales[i] + ROUNDS - ROUNDS + zeros[i];
                weights[i] = Math.max(least, Math.min(127, nearest));
            }
        }

        private static void narrow(float[] weights, byte[] values) {
            for (int i = 0; i < weights.length; i++) {
                values[i] = (byte) weights[i];
            }
        }
    }
}
