package org.tornadomoe.quant;

/**
 * Is notified of a long job's progress and of its error. Called from one thread at a time, with {@code done} growing up
 * to {@code total}.
 */
@FunctionalInterface
public interface Progress {
    /** Ignores all notifications. */
    Progress NONE = (done, total) -> {};

    /**
     * A step is done.
     *
     * @param done units finished so far; the job defines the unit
     * @param total units of the whole job
     */
    void advanced(long done, long total);

    /**
     * A layer's weights have been quantised.
     *
     * @param relativeL2 their distance from the stored weights: {@link Int8Experts#relativeL2}; 0 if they are used as
     *     stored
     */
    default void quantized(double relativeL2) {}

    /**
     * Whether {@link #quantized} should be called; asked once per layer after quantisation. It costs one more read of
     * all rounded weights, on all cores.
     */
    default boolean wantsError() {
        return false;
    }
}
