package uk.ac.manchester.tornado.api;

import uk.ac.manchester.tornado.api.interpreter.Plan;
import uk.ac.manchester.tornado.api.profiler.ProfilerInterface;

/** One execution's measurements: times in nanoseconds, sizes in bytes. All are 0 if the plan's profiler is off. */
public class TornadoProfilerResult implements ProfilerInterface {
    private final Plan.Profile profile;

    TornadoProfilerResult(Plan.Profile profile) {
        this.profile = profile;
    }

    @Override
    public long getTotalTime() {
        return profile.total();
    }

    /** Always 0: nothing is compiled. */
    @Override
    public long getCompileTime() {
        return 0;
    }

    @Override
    public long getTornadoCompilerTime() {
        return 0;
    }

    @Override
    public long getDriverInstallTime() {
        return 0;
    }

    @Override
    public long getDataTransfersTime() {
        return profile.write() + profile.read();
    }

    @Override
    public long getDeviceWriteTime() {
        return profile.write();
    }

    @Override
    public long getDeviceReadTime() {
        return profile.read();
    }

    @Override
    public long getDataTransferDispatchTime() {
        return 0;
    }

    @Override
    public long getKernelDispatchTime() {
        return 0;
    }

    @Override
    public long getDeviceKernelTime() {
        return profile.kernels();
    }

    /** One JSON object. */
    @Override
    public String getProfileLog() {
        return "{\"TOTAL_TIME\": " + getTotalTime() + ", \"COPY_IN_TIME\": " + getDeviceWriteTime()
                + ", \"COPY_OUT_TIME\": " + getDeviceReadTime() + ", \"TOTAL_KERNEL_TIME\": " + getDeviceKernelTime()
                + ", \"TOTAL_COPY_IN_SIZE_BYTES\": " + getTotalBytesCopyIn() + ", \"TOTAL_COPY_OUT_SIZE_BYTES\": "
                + getTotalBytesCopyOut() + "}";
    }

    @Override
    public long getTotalBytesCopyIn() {
        return profile.bytesIn();
    }

    @Override
    public long getTotalBytesCopyOut() {
        return profile.bytesOut();
    }

    @Override
    public long getTotalBytesTransferred() {
        return getTotalBytesCopyIn() + getTotalBytesCopyOut();
    }

    @Override
    public long getTotalDeviceMemoryUsage() {
        return profile.memory();
    }

    /** Prints {@link #getProfileLog()}. */
    public void dumpProfiles() {
        System.out.println(getProfileLog());
    }
}
