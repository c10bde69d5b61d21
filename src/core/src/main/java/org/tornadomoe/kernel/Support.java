package org.tornadomoe.kernel;

import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Whether a kernel class serves a layer, or one reason why it doesn't.
 *
 * @param reason in vLLM's wording, {@code kernel does not support gelu activation}; null if it serves the layer
 * @param remedy what would have to change, {@code activation: one of [silu]}; null if nothing would help
 * @param bytesNeeded if the reason is memory, the bytes that the layer needs; 0 otherwise
 * @param bytesAvailable if the reason is memory, the bytes available; 0 otherwise
 */
public record Support(@Nullable String reason, @Nullable String remedy, long bytesNeeded, long bytesAvailable) {
    /** It serves the layer. */
    public static final Support YES = new Support(null, null, 0, 0);

    /** It doesn't serve the layer. */
    public static Support no(String reason, @Nullable String remedy) {
        return new Support(Objects.requireNonNull(reason, "reason"), remedy, 0, 0);
    }

    /** It doesn't serve the layer, for lack of memory. */
    public static Support noMemory(String reason, String remedy, long needed, long available) {
        return new Support(Objects.requireNonNull(reason, "reason"), remedy, needed, available);
    }

    public boolean supported() {
        return reason == null;
    }

    /** The reason with the remedy in brackets; {@code supported} if it serves the layer. */
    @Override
    public String toString() {
        return reason == null ? "supported" : remedy == null ? reason : reason + " (" + remedy + ")";
    }
}
