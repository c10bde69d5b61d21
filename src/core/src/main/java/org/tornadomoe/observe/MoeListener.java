package org.tornadomoe.observe;

import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * Notified of what a layer does; set in the layer's options. Thread-safe, since calls of several threads end at the
 * same time. What it throws is logged, and the call goes on. A layer without one looks at no clock.
 */
public interface MoeListener {
    /**
     * A layer as it was loaded.
     *
     * @param backend {@code triton}, {@code cpu} or {@code reference}
     * @param kernelClass what runs it
     * @param device where, for people
     * @param deviceBytes bytes of memory that it holds there, for all of its lanes
     * @param lanes calls that it can run at the same time
     */
    record Layer(String backend, String kernelClass, String device, long deviceBytes, int lanes) {}

    /**
     * A call that has ended. Times are in nanoseconds.
     *
     * @param layer the layer called
     * @param tokens M
     * @param bytesIn of the hidden states
     * @param bytesOut of the output
     * @param waitNanos until a lane was free
     * @param nanos all of the call, the wait included
     * @param stageNanos what each stage or kernel took, by name in their order; empty unless {@link #wantsStages} and
     *     where the kernel class can't tell. Through TornadoVM's profiler, which keeps a log of every run, the first 64
     *     calls tell and then the 128th, the 256th and so on
     * @param failure what the call threw; null if it went well
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
     * Whether calls are to time their stages, asked once a layer. On a device that takes TornadoVM's profiler, which
     * makes calls slower.
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
