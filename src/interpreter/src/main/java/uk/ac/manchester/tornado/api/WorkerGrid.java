package uk.ac.manchester.tornado.api;

/** The number of work-items of a task, and the work-group size. Every array has three values: x, y, z. */
public interface WorkerGrid {
    int dimension();

    /** Work-items. */
    long[] getGlobalWork();

    /** Work-items per work-group; null lets the runtime choose. */
    long[] getLocalWork();

    long[] getNumberOfWorkgroups();

    long[] getGlobalOffset();

    void setGlobalWork(long x, long y, long z);

    void setLocalWork(long x, long y, long z);

    void setNumberOfWorkgroupsToNull();

    void setLocalWorkToNull();

    void setGlobalOffset(long x, long y, long z);
}
