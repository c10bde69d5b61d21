package org.tornadomoe.parallel;

import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.stream.IntStream;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.quant.HiddenStates;

/** The sum of the parts' outputs on the host, in the order of the devices, in float, rounded to the layer's type. */
record OutputSum(DeviceParts parts, ScalarType type) {
    /** Values added at a time, few enough for a core's L1 cache. */
    private static final int CHUNK = 2048;

    /** Chunks per task; fewer are not worth another core. */
    private static final int CHUNKS_PER_TASK = 64;

    /** Writes the first {@code values} values of the parts' outputs, added in their order, to the output. */
    void add(int values, MemorySegment output) {
        int tasks = Math.ceilDiv(values, CHUNK * CHUNKS_PER_TASK);
        if (tasks == 1 || !parts.isAccessible(output)) {
            add(0, values, output);
        } else {
            int each = Math.ceilDiv(values, tasks);
            IntStream.range(0, tasks)
                    .parallel()
                    .forEach(task -> add(task * each, Math.min(values, (task + 1) * each), output));
        }
    }

    private void add(int from, int to, MemorySegment output) {
        List<DeviceParts.Part> parts = this.parts.all();
        float[] sum = new float[Math.min(CHUNK, to - from)];
        float[] term = new float[sum.length];
        for (int at = from; at < to; at += CHUNK) {
            int count = Math.min(CHUNK, to - at);
            long offset = (long) type.bytes() * at;
            HiddenStates.read(type, parts.getFirst().output().asSlice(offset), sum, count);
            for (int rank = 1; rank < parts.size(); rank++) {
                HiddenStates.read(type, parts.get(rank).output().asSlice(offset), term, count);
                for (int i = 0; i < count; i++) {
                    sum[i] += term[i];
                }
            }
            HiddenStates.write(type, sum, count, output.asSlice(offset));
        }
    }
}
