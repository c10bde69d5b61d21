package org.tornadomoe.quant;

/** Told how far a long job is. Called from one thread at a time, with {@code done} growing up to {@code total}. */
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
}
