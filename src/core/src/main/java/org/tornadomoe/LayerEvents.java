package org.tornadomoe;

import java.util.Map;
import java.util.function.Consumer;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.observe.MoeListener;

/**
 * A layer's reports to its listener. Without one no clock is looked at; one that fails is logged, and the layer goes
 * on.
 */
final class LayerEvents {
    private static final System.Logger LOG = System.getLogger(MoeLayer.class.getName());

    private final @Nullable MoeListener listener;
    private final Supplier<MoeListener.Layer> layer;

    /** @param layer what reports are about */
    LayerEvents(@Nullable MoeListener listener, Supplier<MoeListener.Layer> layer) {
        this.listener = listener;
        this.layer = layer;
    }

    /** Nanoseconds of a clock, where somebody wants to know. */
    long now() {
        return listener == null ? 0 : System.nanoTime();
    }

    void loaded() {
        report(listener -> listener.loaded(layer.get()));
    }

    void closed() {
        report(listener -> listener.closed(layer.get()));
    }

    /**
     * The end of a call.
     *
     * @param bytes read, and as many written
     * @param waited nanoseconds for a lane
     * @param start of the call, by {@link #now}
     * @param thrown what it ended with; null if it went well
     */
    void called(int tokens, long bytes, long waited, long start, Map<String, Long> stages, @Nullable Throwable thrown) {
        if (listener != null) {
            long took = now() - start;
            report(listener -> listener.called(
                    new MoeListener.Call(layer.get(), tokens, bytes, bytes, waited, took, stages, thrown)));
        }
    }

    private void report(Consumer<MoeListener> event) {
        if (listener != null) {
            try {
                event.accept(listener);
            } catch (RuntimeException failure) {
                LOG.log(System.Logger.Level.WARNING, "the layer's listener failed: " + failure, failure);
            }
        }
    }
}
