package example;

import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;

/** Generates text with a decoder, piece by piece. Thread-safe: answers are generated one after the other. */
record Chat(Text text, Decoder decoder) {
    /**
     * The generated text and its times.
     *
     * @param promptNanos nanoseconds until the first token
     * @param nanos nanoseconds from the first token to the last
     */
    record Answer(String text, int promptTokens, long promptNanos, int tokens, long nanos, boolean ended) {
        double promptSpeed() {
            return 1e9 * promptTokens / promptNanos;
        }

        /** Tokens per second, after the first. */
        double speed() {
            return 1e9 * (tokens - 1) / nanos;
        }
    }

    /**
     * Generates until the model ends its answer, or up to a maximum number of tokens.
     *
     * @param prompt at least one token
     * @param most maximum number of tokens, at least 1
     * @param pieces receives the text piece by piece; a character of several tokens comes when it is complete
     */
    synchronized Answer generate(int[] prompt, int most, Sampler sampler, Consumer<String> pieces) {
        if (prompt.length == 0) {
            throw new IllegalArgumentException("prompt: expected at least one token, got none");
        }
        Decoder.Sequence sequence = decoder.start();
        List<Integer> tokens = new ArrayList<>();
        long start = System.nanoTime();
        int next = sampler.choose(decoder.append(sequence, prompt));
        long first = System.nanoTime();
        String said = "";
        boolean ended = text.ends.contains(next);
        while (!ended) {
            tokens.add(next);
            String all = text.decode(tokens);
            if (!all.endsWith("\ufffd")) {
                pieces.accept(all.substring(said.length()));
                said = all;
            }
            if (tokens.size() == most) {
                break;
            }
            next = sampler.isGreedy()
                    ? decoder.appendGreedily(sequence, next)
                    : sampler.choose(decoder.append(sequence, next));
            ended = text.ends.contains(next);
        }
        String all = text.decode(tokens);
        if (all.length() > said.length()) { // an incomplete character
            pieces.accept(all.substring(said.length()));
        }
        return new Answer(all, prompt.length, first - start, tokens.size(), System.nanoTime() - first, ended);
    }
}
