package uk.ac.manchester.tornado.runtime.library.spi;

import uk.ac.manchester.tornado.runtime.common.TornadoXPUDevice;

/** One launch of a library task. */
public final class LibraryInvocation {
    private final Object[] javaArgs;
    private final long[] devicePointers;
    private final boolean[] isReference;
    private final TornadoXPUDevice device;
    private final long executionPlanId;
    private final LibraryContext context;
    private final Object tuning;

    public LibraryInvocation(
            Object[] javaArgs,
            long[] devicePointers,
            boolean[] isReference,
            TornadoXPUDevice device,
            long executionPlanId,
            LibraryContext context,
            Object tuning) {
        this.javaArgs = javaArgs;
        this.devicePointers = devicePointers;
        this.isReference = isReference;
        this.device = device;
        this.executionPlanId = executionPlanId;
        this.context = context;
        this.tuning = tuning;
    }

    public int getNumArgs() {
        return javaArgs.length;
    }

    /** A number, or an array on the JVM's side. */
    public Object getArg(int index) {
        return javaArgs[index];
    }

    /** The device address of an array's first element. */
    public long getDevicePointer(int index) {
        return devicePointers[index];
    }

    /** Whether it is an array. */
    public boolean isReference(int index) {
        return isReference[index];
    }

    public TornadoXPUDevice getDevice() {
        return device;
    }

    public long getExecutionPlanId() {
        return executionPlanId;
    }

    public LibraryContext getContext() {
        return context;
    }

    /** The argument of {@link uk.ac.manchester.tornado.api.common.LibraryTaskDescriptor#withTuning}. */
    public Object getTuning() {
        return tuning;
    }
}
