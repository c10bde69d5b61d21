package org.tornadomoe.modular;

/**
 * The experts chosen for some tokens.
 *
 * @param topK experts a token: K, and beside them the shared ones
 * @param ids [tokens, topK], in descending order of score, then the shared experts
 * @param weights [tokens, topK], what each expert's output is multiplied by
 */
public record ChosenExperts(int topK, int[] ids, float[] weights) {
    /** For up to {@code tokens} tokens; the contents are zeros until a kernel fills them. */
    public static ChosenExperts allocate(int tokens, int topK) {
        return new ChosenExperts(topK, new int[tokens * topK], new float[tokens * topK]);
    }

    /** The most tokens it can tell of. */
    public int tokens() {
        return ids.length / topK;
    }
}
