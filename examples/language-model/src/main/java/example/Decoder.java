package example;

/** Tokens in, what may come next out. Not thread-safe. */
interface Decoder extends AutoCloseable {
    /** The most tokens that are computed together. */
    int CHUNK = 512;

    /** What has been said so far: the keys and values of its tokens. */
    interface Sequence {
        /** Tokens in it. */
        int length();
    }

    Sequence start();

    /**
     * Appends tokens to a sequence.
     *
     * @return [vocabulary], the logits after the last
     */
    float[] append(Sequence sequence, int... tokens);

    /** Appends a token, and gives that of the greatest logit after it. */
    default int appendGreedily(Sequence sequence, int token) {
        return Sampler.greatest(append(sequence, token));
    }

    /** Which kernels serve the MoE layers, and where. */
    String kernels();

    @Override
    void close();
}
