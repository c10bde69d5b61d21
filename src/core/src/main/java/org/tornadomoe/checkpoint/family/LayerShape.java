package org.tornadomoe.checkpoint.family;

import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * What a layer has to hold.
 *
 * @param intermediate width of an expert as it is stored
 * @param sharedIntermediate width of the shared expert, 0 if there is none
 * @param interleaved whether gate and up rows of a fused tensor alternate, rather than come one after the other
 * @param correctionBias whether there must be one
 * @param zeroExperts choices beyond the experts
 * @param gated whether an expert has a gate
 * @param sharedScale what the shared expert's output is multiplied by
 * @param tableWidth K where experts stand in a table of token ids, else 0
 * @param network that the router is; null if it isn't
 * @param home the layer or bank in which the experts are: this layer, unless several have the same
 * @param stack where the layer stands in a model with an encoder; null in one without
 * @param latent the space in which routed experts compute; null if that is the hidden states'
 */
public record LayerShape(
        int experts,
        int hidden,
        int intermediate,
        int sharedIntermediate,
        boolean interleaved,
        boolean correctionBias,
        int zeroExperts,
        boolean gated,
        float sharedScale,
        int tableWidth,
        @Nullable Network network,
        int home,
        @Nullable Stack stack,
        @Nullable Latent latent,
        Set<Peculiarity> peculiarities) {
    /** What a family's tensors hold that others' don't, or mean something else by. */
    public enum Peculiarity {
        /** The router's bias is added to scores for the choice, and not to logits (DeepSeek-V4). */
        ROUTER_BIAS_CORRECTS,
        /** Without a correction bias it is 0: the groups are chosen as with one (Mistral 4). */
        CORRECTION_MAY_MISS,
        /** Rows of the router's weight after the experts' are the shared experts' (Inkling). */
        ROUTER_HAS_SHARED,
        /** One bias of all experts' outputs, {@code BLOCK.bias} (JetMoE). */
        ONE_BIAS,
        /** Experts may work on a projection of the token, {@code fc1_latent_proj}, and be projected back (Nemotron). */
        LATENT,
        /** The router reads another norm of the token than the experts, and has a factor an expert (Gemma 4). */
        GEMMA4_ROUTER,
        /** Experts' outputs have a factor each, {@code BLOCK.router_scale} (Pangu Pro MoE). */
        EXPERT_SCALES,
        /** One is added to what the up projection computes (Moondream 3). */
        UP_PLUS_ONE,
        /** Router and experts are in {@code meta_mlp.HOME}, and what is shared in the layer (Intern-S2-Mobius). */
        BANKS,
        /** Every two experts have a smaller one beside them, which is added to either (GroveMoE). */
        ADJUGATES,
        /** The router has a query, a key and a value for each expert (Yuan). */
        ATTENDS,
        /** The shared expert and the others have a factor each from {@code BLOCK.coefficient} (Klear). */
        COEFFICIENT,
        /** Tokens of pictures have a router and experts of their own in the block, which come after (Ernie 4.5 VL). */
        OF_PICTURES,
        /** The shared expert is a dense block beside the experts' (Grok-2). */
        DENSE_BESIDE,
        /** A dense block of the layer, which has another input, is no part of the experts' (Arctic, Gemma 4). */
        DENSE_ELSEWHERE
    }

    /** I of the experts beside others, how many have one, and what its output is multiplied by: GroveMoE's code. */
    public static final int ADJUGATE_WIDTH = 128;

    public static final int EXPERTS_AN_ADJUGATE = 2;
    public static final float ADJUGATE_SCALE = 0.05f;

    /**
     * A router that is a network.
     *
     * @param width R
     * @param epsilon of its norm
     * @param readsState whether it reads the one before it
     */
    public record Network(int width, double epsilon, boolean readsState) {}

    /**
     * Of a model with an encoder and a decoder, one of them.
     *
     * @param name that names of its tensors have in them, with a dot behind
     * @param layer its number there
     */
    public record Stack(String name, int layer) {}

    /**
     * A narrower space of routed experts.
     *
     * @param width L
     * @param normed whether their sum is normed before it is projected back
     * @param epsilon of that norm
     */
    public record Latent(int width, boolean normed, double epsilon) {}

    /** Columns that routed experts read, and rows that they write. */
    public int inner() {
        return latent == null ? hidden : latent.width;
    }

    public boolean has(Peculiarity peculiarity) {
        return peculiarities.contains(peculiarity);
    }

    /** What a token chooses from. */
    public int choices() {
        return experts + zeroExperts;
    }

    /** The shape of the router's weight in the file. */
    public long[] storedRouter() {
        return has(Peculiarity.OF_PICTURES) ? new long[] {hidden, routerRows()} : new long[] {routerRows(), hidden};
    }

    /** Rows of the router's weight. */
    public int routerRows() {
        if (network != null) {
            return network.width;
        }
        if (has(Peculiarity.ATTENDS)) {
            return 3 * choices();
        }
        return choices() + (has(Peculiarity.ROUTER_HAS_SHARED) ? sharedIntermediate / intermediate : 0);
    }
}
