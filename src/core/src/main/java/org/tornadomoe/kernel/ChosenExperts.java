package org.tornadomoe.kernel;

import java.util.Locale;
import java.util.StringJoiner;

/**
 * The experts chosen for some tokens.
 *
 * @param topK experts per token: K plus the shared ones
 * @param ids [tokens, topK], in descending order of score, then the shared experts
 * @param weights [tokens, topK], the factor of each expert's output
 */
public record ChosenExperts(int topK, int[] ids, float[] weights) {
    /** Tokens shown by {@link #toString}. */
    private static final int SHOWN = 4;

    /** The maximum length of a Java array. */
    private static final int MOST_VALUES = Integer.MAX_VALUE - 8;

    /**
     * Checks that there is at least one expert per token.
     *
     * @throws IllegalArgumentException if not
     */
    public ChosenExperts {
        requirePositive(topK);
    }

    private static void requirePositive(int topK) {
        if (topK < 1) {
            throw new IllegalArgumentException("topK: expected a positive number, got " + topK);
        }
    }

    /**
     * Allocates room for up to {@code tokens} tokens, with zeros until a kernel fills it.
     *
     * @throws IllegalArgumentException if {@code topK} is not positive, or {@code tokens} is negative or more than an
     *     array can hold
     */
    public static ChosenExperts allocate(int tokens, int topK) {
        requirePositive(topK);
        int most = MOST_VALUES / topK;
        if (tokens < 0 || tokens > most) {
            throw new IllegalArgumentException(
                    "tokens: expected 0 to " + most + " (of " + topK + " experts each), got " + tokens);
        }
        return new ChosenExperts(topK, new int[tokens * topK], new float[tokens * topK]);
    }

    /** The first tokens' experts with their weights: {@code 5 x 0.62 + 1 x 0.38; ...}. */
    @Override
    public String toString() {
        StringJoiner tokens = new StringJoiner("; ", "ChosenExperts[" + tokens() + " tokens of " + topK + ": ", "]");
        for (int t = 0; t < Math.min(SHOWN, tokens()); t++) {
            StringJoiner experts = new StringJoiner(" + ");
            for (int k = t * topK; k < (t + 1) * topK; k++) {
                experts.add(ids[k] + String.format(Locale.ROOT, " x %.4f", weights[k]));
            }
            tokens.add(experts.toString());
        }
        return (tokens() > SHOWN ? tokens.add("...") : tokens).toString();
    }

    /** The number of tokens that it has room for. */
    public int tokens() {
        return Math.min(ids.length, weights.length) / topK;
    }
}
