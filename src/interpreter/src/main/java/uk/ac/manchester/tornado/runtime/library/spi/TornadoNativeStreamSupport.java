package uk.ac.manchester.tornado.runtime.library.spi;

/** A device that gives access to its driver's handles. */
public interface TornadoNativeStreamSupport {
    /** The driver's stream for a plan's work. */
    long getNativeStream(long executionPlanId);

    /** The driver's context of a plan. */
    long getNativeContext(long executionPlanId);
}
