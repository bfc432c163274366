# KVTUNER_CPU: for which processor the CPU back end is compiled. The unpatched build takes this file with `cmake -C`.
#
#   native            this machine's
#   all               each of upstream's variants as a library of its own; the best that runs is loaded
#   haswell, ...      one of these variants (x86); x86-64-v1 to x86-64-v4 are other names of four
#   armv8.2-a+...     what -march takes (Arm)
set(KVTUNER_CPU "native" CACHE STRING "native, all, a variant of llama.cpp, x86-64-v1 to v4, or armv...")

# A folder may change its processor: what the last one chose goes.
set(KVTUNER_CPU_CHOICES GGML_NATIVE GGML_BACKEND_DL GGML_CPU_ALL_VARIANTS GGML_CPU_ARM_ARCH)
foreach(feature SSE42 AVX AVX2 BMI2 AVX_VNNI FMA F16C AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16
                AMX_TILE AMX_INT8 AMX_BF16)
    list(APPEND KVTUNER_CPU_CHOICES GGML_${feature})
endforeach()
if(DEFINED KVTUNER_CPU_BEFORE AND NOT KVTUNER_CPU STREQUAL KVTUNER_CPU_BEFORE)
    foreach(choice IN LISTS KVTUNER_CPU_CHOICES)
        unset(${choice} CACHE)
    endforeach()
endif()
set(KVTUNER_CPU_BEFORE "${KVTUNER_CPU}" CACHE INTERNAL "")

# the instruction sets of one of upstream's variants, from upstream's own table
function(kvtuner_cpu_features name features)
    set(table "${KVTUNER_SOURCE}/vendor/llama.cpp/ggml/src/CMakeLists.txt")
    set(names)
    file(STRINGS "${table}" lines REGEX "ggml_add_cpu_backend_variant\\((x64|[a-z0-9]+ +SSE42[A-Z0-9_ ]*)\\)")
    foreach(line IN LISTS lines)
        string(REGEX MATCHALL "[A-Za-z0-9_]+" words "${line}")
        list(POP_FRONT words function_name variant)
        if(variant STREQUAL name)
            set(${features} "${words}" PARENT_SCOPE)
            return()
        endif()
        list(APPEND names ${variant})
    endforeach()
    list(JOIN names ", " names)
    message(FATAL_ERROR
        "KVTUNER_CPU is '${KVTUNER_CPU}': use native, all, x86-64-v1 to x86-64-v4, armv8.2-a+dotprod or the like, or "
        "one of ${names}")
endfunction()

if(KVTUNER_CPU STREQUAL "all")
    set(GGML_NATIVE OFF CACHE BOOL "" FORCE)
    set(GGML_BACKEND_DL ON CACHE BOOL "" FORCE)
    set(GGML_CPU_ALL_VARIANTS ON CACHE BOOL "" FORCE)
elseif(KVTUNER_CPU MATCHES "^armv")
    set(GGML_NATIVE OFF CACHE BOOL "" FORCE)
    set(GGML_CPU_ARM_ARCH "${KVTUNER_CPU}" CACHE STRING "" FORCE)
elseif(NOT KVTUNER_CPU STREQUAL "native")
    set(variant "${KVTUNER_CPU}")
    foreach(level "x86-64-v1=x64" "x86-64-v2=sse42" "x86-64-v3=haswell" "x86-64-v4=skylakex")
        string(REPLACE "=" ";" level "${level}")
        list(GET level 0 alias)
        if(variant STREQUAL alias)
            list(GET level 1 variant)
        endif()
    endforeach()
    kvtuner_cpu_features("${variant}" wanted)
    foreach(choice IN LISTS KVTUNER_CPU_CHOICES)
        set(${choice} OFF CACHE BOOL "" FORCE)
    endforeach()
    foreach(feature IN LISTS wanted)
        set(GGML_${feature} ON CACHE BOOL "" FORCE)
    endforeach()
endif()
