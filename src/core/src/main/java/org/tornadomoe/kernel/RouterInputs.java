package org.tornadomoe.kernel;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.RouterConfig;

/**
 * What some models' routers read of a call's tokens beside their hidden states. What a layer's router doesn't read
 * isn't looked at.
 *
 * @param tokenIds [M], each token's number in the model's vocabulary, by which a layer with a table of experts chooses
 *     (DeepSeek-V4's first layers); null if not given
 * @param states [M, R] for a router that reads the one before it in the model (ZAYA): that one's states, and after the
 *     call this one's, for the next layer; a model's first layer writes them only. Null for none: then it computes as
 *     with nothing before it
 * @param hidden [M, H] that the router reads where it reads something else than the experts (SmallThinker: the layer's
 *     input before attention); null if not given
 */
public record RouterInputs(int @Nullable [] tokenIds, float @Nullable [] states, float @Nullable [] hidden) {
    /** Nothing. */
    public static final RouterInputs NONE = new RouterInputs(null, null, null);

    /** Token ids and states. */
    public RouterInputs(int @Nullable [] tokenIds, float @Nullable [] states) {
        this(tokenIds, states, null);
    }

    /** The numbers of tokens. */
    public static RouterInputs ofTokenIds(int... tokenIds) {
        return new RouterInputs(tokenIds, null);
    }

    /** States that are read and written. */
    public static RouterInputs ofStates(float[] states) {
        return new RouterInputs(null, states);
    }

    /** What the router reads in place of the experts' hidden states. */
    public static RouterInputs ofHidden(float[] hidden) {
        return new RouterInputs(null, null, hidden);
    }

    /**
     * What the router reads.
     *
     * @param experts the hidden states that the experts read, [M, H]
     * @throws IllegalArgumentException if it reads something else, and that isn't given or are fewer values
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
     * @throws IllegalArgumentException if the token's id isn't given or not of the table
     */
    public int row(int token, int rows) {
        if (tokenIds == null || token >= tokenIds.length) {
            throw new IllegalArgumentException("tokenIds: expected each token's, by which this layer chooses experts,"
                    + " got " + (tokenIds == null ? "none" : tokenIds.length + " for more tokens"));
        }
        int id = tokenIds[token];
        if (id < 0 || id >= rows) {
            throw new IllegalArgumentException(
                    "tokenIds: expected 0 to " + (rows - 1) + ", got " + id + " for token " + token);
        }
        return id;
    }

    /**
     * The states, if given.
     *
     * @throws IllegalArgumentException if they are fewer
     */
    public float @Nullable [] states(int tokens, int width) {
        if (states != null && states.length < (long) tokens * width) {
            throw new IllegalArgumentException(
                    "states: expected [" + tokens + ", " + width + "] values, got " + states.length);
        }
        return states;
    }
}
