package org.tornadomoe;

import java.util.Map;
import java.util.function.Consumer;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.observe.MoeListener;

/**
 * A layer's reports to its listener. Without a listener it reads no clock. If the listener throws, it logs the
 * exception and the layer goes on.
 */
final class LayerEvents {
    private static final System.Logger LOG = System.getLogger(MoeLayer.class.getName());

    private final @Nullable MoeListener listener;
    private final Supplier<MoeListener.Layer> layer;

    /** @param layer supplies the layer's description for the reports */
    LayerEvents(@Nullable MoeListener listener, Supplier<MoeListener.Layer> layer) {
        this.listener = listener;
        this.layer = layer;
    }

    /** The clock in nanoseconds; 0 without a listener. */
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
     * Reports the end of a call.
     *
     * @param bytes bytes read; the same number was written
     * @param waited nanoseconds that the call waited for a lane
     * @param start the call's start, by {@link #now}
     * @param thrown the exception that ended it; null if it succeeded
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
