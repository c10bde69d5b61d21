package org.tornadomoe.kernel;

/** A layer needs more memory than the device has; thrown before anything is allocated. */
public final class InsufficientMemoryException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    private final long needed;
    private final long available;

    /**
     * @param needed bytes the layer needs
     * @param available bytes available
     */
    public InsufficientMemoryException(String message, long needed, long available) {
        super(message);
        this.needed = needed;
        this.available = available;
    }

    /** Bytes the layer needs. */
    public long needed() {
        return needed;
    }

    /** Bytes available. */
    public long available() {
        return available;
    }
}
