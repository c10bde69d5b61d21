package uk.ac.manchester.tornado.runtime.library.spi;

/** A device whose driver's handles are to be had. */
public interface TornadoNativeStreamSupport {
    /** The driver's stream that a plan's work is put on. */
    long getNativeStream(long executionPlanId);

    /** The driver's context of a plan. */
    long getNativeContext(long executionPlanId);
}
