package uk.ac.manchester.tornado.api;

import java.util.Set;

/** A device as its backend sees it. */
public interface TornadoDeviceContext {
    TornadoTargetDevice getDevice();

    boolean isFP64Supported();

    int getDeviceIndex();

    int getDevicePlatform();

    String getDeviceName();

    int getDriverIndex();

    /** The numbers of the plans that have something on the device. */
    Set<Long> getRegisteredPlanIds();

    void setResetToFalse();
}
