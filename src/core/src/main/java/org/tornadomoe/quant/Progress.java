package org.tornadomoe.quant;

/**
 * Told how far a long job is, and what it cost. Called from one thread at a time, with {@code done} growing up to
 * {@code total}.
 */
@FunctionalInterface
public interface Progress {
    /** Listens to nothing. */
    Progress NONE = (done, total) -> {};

    /**
     * A step is done.
     *
     * @param done units finished so far, the job says of what
     * @param total units of the whole job
     */
    void advanced(long done, long total);

    /**
     * A layer's weights are int8.
     *
     * @param relativeL2 how far they are from those that are stored: {@link Int8Experts#relativeL2}; 0 where they are
     *     held as they are
     */
    default void quantized(double relativeL2) {}

    /**
     * Whether {@link #quantized} is to be told, asked once a layer when its weights are int8: those that were rounded
     * are read once more for it, on all cores.
     */
    default boolean wantsError() {
        return false;
    }
}
