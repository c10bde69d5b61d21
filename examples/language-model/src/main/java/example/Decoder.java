package example;

/** Takes tokens and computes the logits of the next one. Not thread-safe. */
interface Decoder extends AutoCloseable {
    /** The maximum number of tokens that are computed together. */
    int CHUNK = 512;

    /** The tokens so far: their keys and values. */
    interface Sequence {
        /** The number of its tokens. */
        int length();
    }

    Sequence start();

    /**
     * Appends tokens to a sequence.
     *
     * @return [vocabulary], the logits after the last token
     */
    float[] append(Sequence sequence, int... tokens);

    /** Appends a token and returns the token with the largest logit after it. */
    default int appendGreedily(Sequence sequence, int token) {
        return Sampler.greatest(append(sequence, token));
    }

    /** The MoE layers' kernels and device. */
    String kernels();

    /** CPU, or TornadoVM's name of the device's backend. */
    String backend();

    /** The device's name, or the number of threads. */
    String device();

    @Override
    void close();
}
