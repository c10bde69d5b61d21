package org.tornadomoe.quant;

import java.lang.foreign.Arena;
import java.util.concurrent.CancellationException;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;

/**
 * Turns a layer's weights into int8, one scale an output channel (a row of w13 or w2), in float arithmetic:
 * {@code scale = max(|row|, 1e-10) / 127}, {@code q = round(w / scale)} with halves to even, clamped to [-127, 127]. That
 * is vLLM's online rule ({@code quantization/online/int8.py}) with a floor, so that a row of zeros gives zeros instead
 * of NaN. The router stays float.
 */
public final class Int8Quantizer {
    /** Rows a thread takes at a time: enough that threads don't queue, few enough that they finish together. */
    private static final int CHUNK = 64;

    private Int8Quantizer() {}

    /**
     * Quantises on all cores. The same weights give the same bits, whatever the number of cores.
     *
     * @param progress told in rows: E * 2I of w13, then E * H of w2
     * @return the experts, to be closed by the caller
     * @throws IllegalArgumentException if a weight is NaN or infinite; the message names expert, projection, row and
     *     column. Nothing stays allocated, also after any other failure.
     * @throws CancellationException if the calling thread is interrupted meanwhile; it stays interrupted
     * @throws OutOfMemoryError if the int8 weights do not fit
     */
    public static Int8Experts quantize(ExpertWeights source, Int8Scheme scheme, Progress progress) {
        return quantize(source, scheme, progress, Arena.ofShared());
    }

    /** With the arena that the result is allocated in and owns, closed if this throws. */
    static Int8Experts quantize(ExpertWeights source, Int8Scheme scheme, Progress progress, Arena arena) {
        try {
            if (scheme != Int8Scheme.W8A8_CHANNEL && scheme != Int8Scheme.W8A16_CHANNEL) {
                throw new UnsupportedOperationException("scheme: quantising to " + scheme + " is not there yet");
            }
            FusedMoeConfig config = source.config();
            RouterWeights router = source.router();
            router.requireFits(config);
            Int8Tensor w13 =
                    Int8Tensor.allocate(arena, config.globalNumExperts(), config.gateUpRows(), config.hiddenDim());
            Int8Tensor w2 = Int8Tensor.allocate(
                    arena, config.globalNumExperts(), config.hiddenDim(), config.intermediateSize());
            long w13Rows = w13.scales().length;
            long rows = w13Rows + w2.scales().length;
            quantizeRows(
                    w13,
                    source::gateUpRow,
                    (expert, row) -> config.gateUpRow(row),
                    done -> progress.advanced(done, rows));
            quantizeRows(
                    w2,
                    source::downRow,
                    (expert, row) -> "down projection, row " + row,
                    done -> progress.advanced(w13Rows + done, rows));
            return Int8Experts.builder(config, scheme, w13, w2, arena)
                    .router(router)
                    .biases(source.w13Bias(), source.w2Bias())
                    .build();
        } catch (Throwable e) {
            arena.close();
            throw e;
        }
    }

    @FunctionalInterface
    private interface RowReader {
        void read(int expert, int row, float[] into);
    }

    @FunctionalInterface
    private interface RowName {
        String of(int expert, int row);
    }

    @FunctionalInterface
    private interface RowsDone {
        void rows(long done);
    }

    private static void quantizeRows(Int8Tensor tensor, RowReader reader, RowName name, RowsDone progress) {
        int rows = tensor.experts() * tensor.rows();
        AtomicLong next = new AtomicLong();
        // Chunks are taken in ascending order and a chunk is dropped only for a failure before it, so the lowest
        // failure
        // is the first one in the tensor, on any number of cores.
        ConcurrentSkipListMap<Long, Throwable> failures = new ConcurrentSkipListMap<>();
        Object reporting = new Object();
        long[] done = {0};
        Runnable worker = () -> {
            float[] weights = new float[tensor.cols()];
            byte[] values = new byte[tensor.cols()];
            for (long from = next.getAndAdd(CHUNK);
                    from < rows && failures.headMap(from).isEmpty();
                    from = next.getAndAdd(CHUNK)) {
                try {
                    if (Thread.currentThread().isInterrupted()) {
                        throw new CancellationException("quantisation was interrupted");
                    }
                    int to = (int) Math.min(rows, from + CHUNK);
                    for (int i = (int) from; i < to; i++) {
                        int expert = i / tensor.rows();
                        int row = i % tensor.rows();
                        reader.read(expert, row, weights);
                        float scale = quantize(weights, values, expert, row, name);
                        tensor.setRow(expert, row, values, 0, scale);
                    }
                    synchronized (reporting) {
                        done[0] += to - from;
                        progress.rows(done[0]);
                    }
                } catch (Throwable e) {
                    failures.put(from, e);
                }
            }
        };
        int cores = Runtime.getRuntime().availableProcessors();
        // Closing waits for the workers; if this thread is interrupted, it interrupts them and waits on.
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

    private static float quantize(float[] weights, byte[] values, int expert, int row, RowName name) {
        float absMax = Int8Activations.MIN_ABS_MAX;
        for (int i = 0; i < weights.length; i++) {
            float abs = Math.abs(weights[i]);
            if (!(abs <= Float.MAX_VALUE)) {
                throw new IllegalArgumentException("weight: expected finite values, got " + weights[i] + " at expert "
                        + expert + ", " + name.of(expert, row) + ", column " + i);
            }
            absMax = Math.max(absMax, abs);
        }
        float scale = absMax / 127f;
        for (int i = 0; i < weights.length; i++) {
            values[i] = (byte) Math.clamp((long) Math.rint(weights[i] / scale), -127, 127);
        }
        return scale;
    }
}
