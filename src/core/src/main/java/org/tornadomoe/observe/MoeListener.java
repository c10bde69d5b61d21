package org.tornadomoe.observe;

import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * Is notified of a layer's events; set it in the layer's options. It must be thread-safe, because calls of several
 * threads may end at the same time. If it throws, the exception is logged and the call goes on. A layer without a
 * listener reads no clock.
 */
public interface MoeListener {
    /**
     * A loaded layer.
     *
     * @param backend {@code triton}, {@code cpu} or {@code reference}
     * @param kernelClass the kernel class that runs it
     * @param device its device, in human-readable form
     * @param deviceBytes bytes of device memory that it holds, for all lanes
     * @param lanes the number of calls that it can run at the same time
     */
    record Layer(String backend, String kernelClass, String device, long deviceBytes, int lanes) {}

    /**
     * A call that has ended. Times are in nanoseconds.
     *
     * @param layer the layer called
     * @param tokens M
     * @param bytesIn bytes of hidden states
     * @param bytesOut bytes of output
     * @param waitNanos time until a lane was free
     * @param nanos time of the whole call, including the wait
     * @param stageNanos time of each stage or kernel, by name, in their order; empty unless {@link #wantsStages}, and
     *     where the kernel class can't measure it. Where TornadoVM's profiler measures, which keeps a log of every run,
     *     only the first 64 calls report, then the 128th, the 256th and so on
     * @param failure the call's exception; null if it succeeded
     */
    record Call(
            Layer layer,
            int tokens,
            long bytesIn,
            long bytesOut,
            long waitNanos,
            long nanos,
            Map<String, Long> stageNanos,
            @Nullable Throwable failure) {}

    /** A layer is ready. */
    default void loaded(Layer layer) {}

    /** A call has ended, on the thread that made it and after its lane was given back. */
    default void called(Call call) {}

    /** A layer is closed. */
    default void closed(Layer layer) {}

    /**
     * Whether calls should time their stages; asked once per layer. On a device this needs TornadoVM's profiler, which
     * slows calls down.
     */
    default boolean wantsStages() {
        return false;
    }

    /** This listener, notified of stages as well. */
    default MoeListener withStages() {
        return and(new MoeListener() {
            @Override
            public boolean wantsStages() {
                return true;
            }
        });
    }

    /** This listener and another, notified one after the other. */
    default MoeListener and(MoeListener other) {
        MoeListener first = this;
        return new MoeListener() {
            @Override
            public void loaded(Layer layer) {
                first.loaded(layer);
                other.loaded(layer);
            }

            @Override
            public void called(Call call) {
                first.called(call);
                other.called(call);
            }

            @Override
            public void closed(Layer layer) {
                first.closed(layer);
                other.closed(layer);
            }

            @Override
            public boolean wantsStages() {
                return first.wantsStages() || other.wantsStages();
            }
        };
    }
}
