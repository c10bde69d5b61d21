package org.tornadomoe.kernel;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.RouterConfig;

/**
 * Additional inputs that some models' routers read for a call's tokens. A router ignores inputs that it doesn't read.
 *
 * @param tokenIds [M], each token's id in the model's vocabulary, for a layer that chooses experts from a table by it
 *     (DeepSeek-V4's first layers); null if not given
 * @param states [M, R] for a router that reads the states of the previous layer's router (ZAYA): in, the previous
 *     router's states; out, this router's states for the next layer. A model's first layer only writes them. Null for
 *     none: the router then computes as if no layer came before it
 * @param hidden [M, H] the router's input, if it differs from the experts' (SmallThinker: the layer's input before
 *     attention); null if not given
 */
public record RouterInputs(int @Nullable [] tokenIds, float @Nullable [] states, float @Nullable [] hidden) {
    /** No additional inputs. */
    public static final RouterInputs NONE = new RouterInputs(null, null, null);

    /** Token ids and states. */
    public RouterInputs(int @Nullable [] tokenIds, float @Nullable [] states) {
        this(tokenIds, states, null);
    }

    /** Token ids only. */
    public static RouterInputs ofTokenIds(int... tokenIds) {
        return new RouterInputs(tokenIds, null);
    }

    /** States only, which the call reads and writes. */
    public static RouterInputs ofStates(float[] states) {
        return new RouterInputs(null, states);
    }

    /** The router's input only, in place of the experts' hidden states. */
    public static RouterInputs ofHidden(float[] hidden) {
        return new RouterInputs(null, null, hidden);
    }

    /**
     * The router's input.
     *
     * @param experts the hidden states that the experts read, [M, H]
     * @throws IllegalArgumentException if the router reads another input, and that is missing or too short
     */
    public float[] hidden(RouterConfig router, float[] experts, int tokens, int width) {
        if (!router.readsOwnInput()) {
            return experts;
        }
        if (hidden == null || hidden.length < (long) tokens * width) {
            throw new IllegalArgumentException("hidden: expected what this layer's router reads, [" + tokens + ", "
                    + width + "] values, got " + (hidden == null ? "none" : hidden.length));
        }
        return hidden;
    }

    /**
     * The expert table's row of a token.
     *
     * @param rows of the table
     * @throws IllegalArgumentException if the token's id is missing or outside the table
     */
    public int row(int token, int rows) {
        if (tokenIds == null || token >= tokenIds.length) {
            throw new IllegalArgumentException(
                    "tokenIds: expected an id for each token, as this layer's router reads them, got "
                            + (tokenIds == null ? "none" : tokenIds.length + " for more tokens"));
        }
        int id = tokenIds[token];
        if (id < 0 || id >= rows) {
            throw new IllegalArgumentException(
                    "tokenIds: expected 0 to " + (rows - 1) + ", got " + id + " for token " + token);
        }
        return id;
    }

    /**
     * The states; null if not given.
     *
     * @throws IllegalArgumentException if they are too short
     */
    public float @Nullable [] states(int tokens, int width) {
        if (states != null && states.length < (long) tokens * width) {
            throw new IllegalArgumentException(
                    "states: expected [" + tokens + ", " + width + "] values, got " + states.length);
        }
        return states;
    }
}
