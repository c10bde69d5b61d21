package org.tornadomoe.kernel;

import java.lang.foreign.MemorySegment;
import java.util.Map;

/** The operations of a {@link MoeKernel} that can time its stages. */
public interface Profiled {
    /** Makes later calls record the time of each stage, for {@link #stageTimes}, as far as the kernel can. */
    void timeStages();

    /**
     * The times of the last call's stages in nanoseconds, by name, in their order. The caller of that call must ask
     * before the next call. Empty without {@link #timeStages}, and where the times are unknown.
     */
    Map<String, Long> stageTimes();

    /**
     * Runs the layer without adapters and leaves the result on the device; {@code hidden} and {@code tokens} as in
     * {@link MoeKernel#forward}.
     *
     * @return the time of each of the device's kernels in nanoseconds, by name, in their order; empty if unknown
     * @throws MoeExecutionException if the device or a kernel failed
     */
    default Map<String, Long> profile(MemorySegment hidden, int tokens) {
        return Map.of();
    }

    /** Makes a kernel record its stages' times, if it can. */
    static void timeStages(MoeKernel kernel) {
        if (kernel instanceof Profiled profiled) {
            profiled.timeStages();
        }
    }

    /** {@link #stageTimes} of a kernel; empty if it is not {@code Profiled}. */
    static Map<String, Long> stageTimes(MoeKernel kernel) {
        return kernel instanceof Profiled profiled ? profiled.stageTimes() : Map.of();
    }

    /** {@link #profile(MemorySegment, int)} of a kernel; empty if it is not {@code Profiled}. */
    static Map<String, Long> profile(MoeKernel kernel, MemorySegment hidden, int tokens) {
        return kernel instanceof Profiled profiled ? profiled.profile(hidden, tokens) : Map.of();
    }
}
