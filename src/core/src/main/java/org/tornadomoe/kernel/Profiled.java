package org.tornadomoe.kernel;

import java.lang.foreign.MemorySegment;
import java.util.Map;

/** What a {@link MoeKernel} can that measures its stages. */
public interface Profiled {
    /** From now on calls take note of what each stage takes, for {@link #stageTimes}, as far as the kernel can. */
    void timeStages();

    /**
     * What the last call's stages took, in nanoseconds, by name in their order. To be asked by whoever made that call,
     * before another is made; empty without {@link #timeStages} and where that can't be told.
     */
    Map<String, Long> stageTimes();

    /**
     * Runs the layer without adapters and leaves the result where it is; {@code hidden} and {@code tokens} as of {@link
     * MoeKernel#forward}.
     *
     * @return what each of the device's kernels took, in nanoseconds, by name, in their order; empty where that can't
     *     be told
     * @throws MoeExecutionException if the device or a kernel failed
     */
    default Map<String, Long> profile(MemorySegment hidden, int tokens) {
        return Map.of();
    }

    /** Has a kernel take note of its stages, if it can. */
    static void timeStages(MoeKernel kernel) {
        if (kernel instanceof Profiled profiled) {
            profiled.timeStages();
        }
    }

    /** {@link #stageTimes} of a kernel; empty if it can't. */
    static Map<String, Long> stageTimes(MoeKernel kernel) {
        return kernel instanceof Profiled profiled ? profiled.stageTimes() : Map.of();
    }

    /** {@link #profile(MemorySegment, int)} of a kernel; empty if it can't. */
    static Map<String, Long> profile(MoeKernel kernel, MemorySegment hidden, int tokens) {
        return kernel instanceof Profiled profiled ? profiled.profile(hidden, tokens) : Map.of();
    }
}
